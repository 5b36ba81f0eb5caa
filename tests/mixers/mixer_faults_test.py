"""Faults of a mixer that the laws must notice."""

import dataclasses

import jax.numpy as jnp
import pytest
from flax import nnx

from posenc_jax.protocol.registry import lookup
from posenc_jax.testing import BrokenLaw, mixers


def scan_of(**changed):
    """The class of the GRU layer, in which one argument of `scan` is replaced by another."""
    entry = lookup('gru', ('mixer',))

    class Faulty(entry.build):
        def scan(self, x, tok, starts, state):
            given = dict(x=x, tok=tok, starts=starts, state=state)
            return super().scan(
                **given | {name: change(**given) for name, change in changed.items()}
            )

    return entry, Faulty


FAULTS = {
    'remembers the document before': (
        dict(starts=lambda starts, **_: jnp.zeros_like(starts)),
        mixers.causality,
    ),
    'reads padding': (
        dict(tok=lambda tok, **_: dataclasses.replace(tok, valid=None)),
        mixers.padding,
    ),
    'forgets what came before': (
        dict(state=lambda state, **_: jnp.zeros_like(state)),
        mixers.decoding,
    ),
    'reads later tokens': (
        dict(x=lambda x, **_: x + 0.1 * jnp.roll(x, -1, axis=1)),
        mixers.causality,
    ),
    'reads positions': (
        dict(x=lambda x, tok, **_: x * (1 + 0.01 * tok.pos[..., None])),
        mixers.relative,
    ),
    'gives another dtype': (dict(x=lambda x, **_: x.astype(jnp.float32)), mixers.shapes),
}


@pytest.mark.full
@pytest.mark.parametrize('fault', FAULTS)
def test_faults_would_be_noticed(monkeypatch, fault):
    changed, law = FAULTS[fault]
    entry, faulty = scan_of(**changed)

    def subject(build):
        make = lambda seed: build(model_dim=mixers.MODEL, layers=2, rngs=nnx.Rngs(seed))
        return mixers.Mixed(lambda seed: mixers.moved(make(seed), seed), entry.card.promises)

    law(subject(entry.build))
    with pytest.raises(BrokenLaw):
        law(subject(faulty))
