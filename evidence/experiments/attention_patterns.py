"""How far the attention of models is from that of the model without positions, for `impact`.

The distance of two models is the Jensen-Shannon divergence, in nats, of the rows of attention on
test examples of 8 items: for every head of a layer of the model without positions, the least over
the heads of that layer in the other one, on the mean over heads, layers and rows. The names of runs
are TASK_ENCODING. Results: WORKDIR/patterns/results.csv
"""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from evidence.experiments.tables import report
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.lab.analyse.capture import capture_encodings
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.runs.prepare import UNASKED, prepare
from posenc_jax.lab.tasks.task import batch_rng

TRAINED, EXAMPLES = 8, 32


def patterns(model: Transformer, tokens: Int[Array, 'B L']) -> Float[np.ndarray, 'layers N B L L']:
    """The attention of every layer and head."""

    def look(encoding, before, after):
        del before
        q, k, tq, tk = after
        q, k = jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2)
        s, _, seen = pair_logits(encoding, q, k, tq, tk)
        return jnp.where(seen, jax.nn.softmax(jnp.where(seen, s, -1e30), axis=-1), 0.0)

    return np.moveaxis(np.asarray(capture_encodings(model, tokens, None, look)), 2, 1)


def divergence(
    own: Float[np.ndarray, 'N B L L'], other: Float[np.ndarray, 'M B L L']
) -> Float[np.ndarray, 'N M']:
    """The Jensen-Shannon divergence of all pairs of heads, in nats, on the mean over rows.

    Example:
      >>> one = np.array([[[[1.0, 0.0]]]])
      >>> divergence(one, one[..., ::-1]).round(4).item(), divergence(one, one).item()
      (0.6931, 0.0)
    """
    entropy = lambda p: -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1).mean((-1, -2))
    middle = np.stack([entropy((one + other) / 2) for one in own])
    return middle - (entropy(own)[:, None] + entropy(other)) / 2


def distance(
    own: Float[np.ndarray, 'layers N B L L'], other: Float[np.ndarray, 'layers M B L L']
) -> float:
    """The mean over layers and heads of the divergence of the nearest head."""
    return float(np.mean([divergence(a, b).min(1).mean() for a, b in zip(own, other)]))


def measure(directories: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Compares the attention of trained models."""
    found = {}
    for key, directory in directories.items():
        job = prepare(directory, UNASKED)
        rng = batch_rng(0, 'test', TRAINED)
        tokens = job.task.for_evaluation().sample(rng, EXAMPLES, TRAINED)['tokens']
        found[key] = patterns(job.load()[0], jnp.asarray(tokens))
    rows = [
        (task, name, TRAINED, seed, distance(found[f'{task}_nope', seed], own))
        for (run, seed), own in found.items()
        for task, _, name in [run.partition('_')]
        if name != 'nope' and (f'{task}_nope', seed) in found
    ]
    out = workdir / 'patterns'
    report(rows, out, title='Attention, from that without positions', x='items', value='nats')
