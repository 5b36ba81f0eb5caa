"""Five tasks of `impact_pe` to twice the trained length, without positions and with four encodings.

Command:   python -m evidence.experiments.impact [--seeds 0 1 2] [--workdir runs/impact]
           [--only copy_nope copy_alibi]
Data:      copying, reversing and sorting 10 symbols, sums, and parity, trained on 2 to 8 items and
           read at 8, 12 and 16. Models have 2 layers of width 128.
Measured:  exact match of the answer; and how far the attention of the model without positions is
           from that of the others. The distance of two models is the Jensen-Shannon divergence, in
           nats, of the rows of attention on test examples of 8 items: for every head of a layer of
           the model without positions, the least over the heads of that layer in the other one, on
           the mean over heads, layers and rows.
Number:    docs/claims.md, claims A10 and A12
Results:   WORKDIR/comparison and WORKDIR/patterns/results.csv. Runs whose last step is saved are
           not trained again, so the sweep may be interrupted and started again.
Paper:     Kazemnejad et al. (arXiv 2305.19466): on ten tasks models of 107 million parameters
           without positions generalise better than the others on the mean, and their attention is
           nearest to that of models with T5's bias.
"""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from evidence.experiments.runs import Sweep
from evidence.experiments.tables import report
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.lab.analyse.capture import capture_encodings
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.runs.prepare import UNASKED, prepare
from posenc_jax.lab.tasks.task import batch_rng

TASKS = {
    'copy': 'impact_pe("copy", symbols=10)',
    'reverse': 'impact_pe("reverse", symbols=10)',
    'sort': 'impact_pe("sort_single", symbols=10)',
    'sum': 'impact_pe("sum")',
    'parity': 'impact_pe("parity")',
}
ENCODINGS = {
    'nope': 'nope()',
    't5': 't5_rpe()',
    'alibi': 'alibi()',
    'rope': 'rope()',
    'sinusoidal': 'sinusoidal()',
}
TRAINED, EXAMPLES = 8, 32
RUNS = {
    f'{task}_{name}': {'task': spec, 'encoding': encoding}
    for task, spec in TASKS.items()
    for name, encoding in ENCODINGS.items()
}
SETTINGS = (
    f'train.length={TRAINED}', 'train.min_length=2', 'train.batch=32', 'train.steps=1500',
    'train.lr=2e-3', 'train.warmup=100', 'train.save_every=100000', 'train.eval_every=500',
    'model.layers=2', 'model.width=128', 'model.heads=4',
)  # fmt: skip


def patterns(model: Transformer, tokens: Int[Array, 'B L']) -> Float[np.ndarray, 'layers N B L L']:
    """The attention of every layer and head."""

    def look(encoding, before, after):
        del before
        q, k, tq, tk = after
        q, k = jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2)
        s, _, seen = pair_logits(encoding, q, k, tq, tk, encoding.init_carry(q, tq))
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


@dataclasses.dataclass(frozen=True)
class Attending(Sweep):
    """A sweep that also compares the attention of its models."""

    def main(self, arguments=None):
        directories = super().main(arguments)
        found = {}
        for (name, seed), directory in directories.items():
            job = prepare(directory, UNASKED)
            rng = batch_rng(0, 'test', TRAINED)
            tokens = job.task.for_evaluation().sample(rng, EXAMPLES, TRAINED)['tokens']
            found[name, seed] = patterns(job.load()[0], jnp.asarray(tokens))
        rows = [
            (task, name, TRAINED, seed, distance(found[f'{task}_nope', seed], own))
            for (run, seed), own in found.items()
            for task, _, name in [run.partition('_')]
            if name != 'nope' and (f'{task}_nope', seed) in found
        ]
        out = pathlib.Path(next(iter(directories.values()))).parent / 'patterns'
        report(rows, out, title='Attention, from that without positions', x='items', value='nats')
        return directories


SWEEP = Attending(
    __doc__,
    RUNS,
    workdir='runs/impact',
    settings=SETTINGS,
    evaluation={'comparison': ('eval.lengths=8,12,16', 'eval.samples=256')},
)

if __name__ == '__main__':
    SWEEP.main()
