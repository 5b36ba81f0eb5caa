"""The attention that trained models give to the first byte of a window, for `learned_sinks`.

Windows of 128 bytes, the trained length, begin all over the test text. The table in
WORKDIR/first_byte has means over windows, layers, heads and the queries of the second half, which
see 65 to 128 bytes: the weight of the first byte ('weight'), in which a sink has its part of the
softmax; its share of the weights of all bytes ('share'); and the weight of all bytes together
('bytes'), 1 without a sink. A sink that takes from all bytes alike changes the weight and not the
share.
"""

import pathlib
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from evidence.experiments.tables import report
from posenc_jax.lab.analyse.capture import attention_of
from posenc_jax.lab.analyse.states import over_layers
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.runs.prepare import UNASKED, prepare

LENGTH, WINDOWS, FIRST_QUERY = 128, 64, 64


def on_first(model: Transformer, tokens: Int[Array, 'B L']) -> dict[str, float]:
    """The three means that the module describes."""

    def look(encoding, before, after):
        del before
        q, k, tq, tk = after
        s, share, seen = attention_of(
            encoding, jnp.swapaxes(q, 1, 2), jnp.swapaxes(k, 1, 2), tq, tk
        )
        lse = jnp.swapaxes(jax.nn.logsumexp(jnp.where(seen, s, -jnp.inf), axis=-1), 1, 2)
        # What is left of values that are all 1 is the weight of all keys.
        kept = encoding.rescale(jnp.ones((*lse.shape, 1)), lse, tq)[..., 0]
        share = jnp.swapaxes(share[..., 0], 1, 2)
        late = lambda a: a[:, FIRST_QUERY:].mean()
        return {'weight': late(kept * share), 'share': late(share), 'bytes': late(kept)}

    found = over_layers(model, tokens, look)
    return {name: float(np.mean(by_layer)) for name, by_layer in found.items()}


def measure(directories: Mapping[tuple[str, int], str], workdir: pathlib.Path) -> None:
    """Reads the windows with every model."""
    rows = []
    for (name, seed), directory in directories.items():
        job = prepare(directory, UNASKED)
        text = np.asarray(job.task.tokens('test'))
        begins = np.linspace(0, len(text) - LENGTH, WINDOWS).astype(int)
        windows = jnp.asarray(text[begins[:, None] + np.arange(LENGTH)])
        found = on_first(job.load()[0], windows)
        rows += [(panel, name, LENGTH, seed, value) for panel, value in found.items()]
    report(rows, workdir / 'first_byte', title='The first byte', x='bytes', value='of attention')
