"""Faults of a mixer that the contract tests must notice."""

import dataclasses

import jax.numpy as jnp
import pytest
from flax import nnx

from tests.mixers import mixer_contract_test as contract
from tests.mixers.small import moved


def scan_of(**changed):
    """The class of the GRU layer, in which one argument of `scan` is replaced by another."""
    (entry,) = (entry for entry in contract.ENTRIES if entry.key == 'gru')

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
        contract.test_causality,
    ),
    'reads padding': (
        dict(tok=lambda tok, **_: dataclasses.replace(tok, valid=None)),
        contract.test_padding_is_finite_and_does_not_leak,
    ),
    'forgets what came before': (
        dict(state=lambda state, **_: jnp.zeros_like(state)),
        lambda entry: contract.test_steps_in_any_cut_equal_the_whole(entry, 'packed_and_padded'),
    ),
    'reads later tokens': (
        dict(x=lambda x, **_: x + 0.1 * jnp.roll(x, -1, axis=1)),
        contract.test_causality,
    ),
    'reads positions': (
        dict(x=lambda x, tok, **_: x * (1 + 0.01 * tok.pos[..., None])),
        contract.test_promise_relative,
    ),
    'gives another dtype': (
        dict(x=lambda x, **_: x.astype(jnp.float32)),
        contract.test_the_result_has_the_dtype_of_the_input_and_the_state_is_float32,
    ),
}


@pytest.mark.full
@pytest.mark.parametrize('fault', FAULTS)
def test_faults_would_be_noticed(monkeypatch, fault):
    changed, check = FAULTS[fault]
    entry, faulty = scan_of(**changed)
    mixer = moved(faulty(model_dim=contract.MODEL, layers=2, rngs=nnx.Rngs(0)), 0.1, 100)
    check(entry)
    monkeypatch.setattr(contract, 'mixer_of', lambda entry: mixer)
    with pytest.raises(AssertionError):
        check(entry)
