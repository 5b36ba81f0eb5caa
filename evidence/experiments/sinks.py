"""Streams of models of short windows in caches of one size, for `frontier_text streams`.

Trained models read 2048 bytes of the test text token by token, in caches of 128 tokens, the trained
length, which hold the last tokens, or the first four and the last 124. Positions count within the
cache. WORKDIR/sinks/results.csv has the nats of the bytes behind the first 128, as a mean over rows
that begin all over the text. The place x is the number of first tokens.

Paper:     Xiao et al. (arXiv 2309.17453): without the first tokens a window fails, four of them
           mend it, and a model that is trained with a sink of its own needs one or none.
"""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax

from evidence.experiments.tables import report
from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.decoding.streaming import StreamingCache
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.runs.prepare import UNASKED, prepare
from posenc_jax.protocol.tokens import Tokens

SIZE, LENGTH, ROWS, FIRST = 128, 2048, 16, (0, 4)


def nats(model: Transformer, text: jax.Array, cache: StreamingCache) -> jax.Array:
    """The loss of each token behind the first `SIZE`, [rows, LENGTH - SIZE]."""
    empty = init_cache(model, Tokens.of(length=text.shape[1]))
    layers = list(model.layers())
    logits, state = cache.prefill(model, empty, text[:, :SIZE])

    def step(state, token):
        logits, cached = state
        lost = optax.softmax_cross_entropy_with_integer_labels(logits, token)
        return cache.step(model, empty, cached, token, layers), lost

    return jax.lax.scan(step, (logits[:, -1], state), text[:, SIZE:].T)[1].T


def measure(directories: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Streams with and without the first tokens."""
    rows = []
    for (name, seed), directory in directories.items():
        job = prepare(directory, UNASKED)
        text = np.asarray(job.task.tokens('test'))
        begins = np.linspace(0, len(text) - LENGTH, ROWS).astype(int)
        text = jnp.asarray(np.stack([text[at : at + LENGTH] for at in begins]))
        model = job.load()[0].extend('streaming()')
        for first in FIRST:
            cache = StreamingCache(first, SIZE - first, room=1)
            found = jax.jit(lambda text, cache=cache: nats(model, text, cache).mean())(text)
            rows.append(('streams', name, first, seed, float(found)))
    report(rows, workdir / 'sinks', title='Streams', x='first tokens', value='nats a byte')
