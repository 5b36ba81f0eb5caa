"""What forget gates let attention leave out, for `frontier_text listings`.

A trained model with `fox()` reads windows of 2048 bytes of the test text, with and without
`prune=-10`. WORKDIR/pruned/results.csv has the share of the tiles of 64 queries and 64 keys below
the diagonal that are left out, over heads and layers, and the difference of the losses in nats a
byte.

Paper:     Lin et al. (arXiv 2504.06949): about 70 % of the attention FLOPs are pruned.
"""

import dataclasses
import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.tables import report
from posenc_jax.attention.pruned import tiles_needed
from posenc_jax.lab.analyse.capture import capture_encodings
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.runs.prepare import UNASKED, prepare

LENGTH, ROWS, BLOCK = 2048, 4, 64
PRUNED = 'fox(prune=-10.0)'


def with_pruning(model: Transformer) -> Transformer:
    """The same weights with an encoding that leaves out tiles."""
    other = Transformer(dataclasses.replace(model.cfg, encoding=PRUNED), rngs=nnx.Rngs(0))
    nnx.update(other, nnx.state(model))
    return other


def left_out(model: Transformer, tokens: jax.Array) -> np.ndarray:
    """The share of the tiles with a pair below the diagonal that each layer leaves out."""

    def look(encoding, before, after):
        q, k, tq, tk = after
        return tiles_needed(encoding, q, k, tq, tk, BLOCK).mean()

    count = tokens.shape[1] // BLOCK
    computed = np.asarray(capture_encodings(model, tokens, None, look)) * count**2
    return 1 - computed / (count * (count + 1) / 2)


def loss(model: Transformer, tokens: jax.Array) -> float:
    """The mean loss in nats a token."""
    logits = model(tokens)[:, :-1]
    each = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return float(each.mean())


def measure(directories: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Compares trained models with and without pruning."""
    rows = []
    for (name, seed), directory in directories.items():
        if name != 'fox':
            continue
        job = prepare(directory, UNASKED)
        text = np.asarray(job.task.tokens('test')[: ROWS * LENGTH]).reshape(ROWS, LENGTH)
        tokens, model = jnp.asarray(text), job.load()[0]
        pruned = with_pruning(model)
        rows.append(('left out', name, LENGTH, seed, float(left_out(pruned, tokens).mean())))
        change = loss(pruned, tokens) - loss(model, tokens)
        rows.append(('change of the loss', name, LENGTH, seed, abs(change)))
    if rows:
        report(rows, workdir / 'pruned', title='Pruning', x='bytes', value='share or nats')
