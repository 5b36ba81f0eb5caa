"""Positional neurons: information by hand, its bias, shapes, and models with and without learned
positions.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.analyse.positional_neurons import (
    ANALYSIS,
    Neurons,
    position_information,
    positional_neurons,
    shape_of,
)
from tests.golden_files import golden_suite
from tests.lab.analyse.by_hand import check_report
from tests.random_models import TOKENS, random_model, random_states
from tests.small_models import small_model

HALF = np.where(np.arange(10) < 5, 1.0, 0.0)

test_golden = golden_suite(
    'positional_neurons',
    {
        'half': lambda: position_information(HALF),
        'constant': lambda: position_information(np.full(10, 0.3)),
        'linear': lambda: position_information(np.linspace(0, 1, 10)),
    },
    atol=1e-5,
)


def test_information_by_hand():
    found = position_information(np.stack([HALF, np.zeros(10)]))
    np.testing.assert_allclose(found, [np.log(2), 0], atol=1e-9)
    entropy = lambda p: -p * np.log(p) - (1 - p) * np.log(1 - p)  # I = H(mean) - mean H
    own = np.random.default_rng(0).uniform(0.01, 0.99, 12)
    assert position_information(own) == pytest.approx(entropy(own.mean()) - entropy(own).mean())


def test_few_sequences_add_the_inverse_of_twice_their_number():
    draws = np.random.default_rng(0).binomial(100, 0.4, size=(2000, 32)) / 100
    assert position_information(draws).mean() == pytest.approx(1 / 200, rel=0.1)


def test_shapes_and_dead_neurons():
    place = np.arange(40)
    assert shape_of(np.where(place < 7, 0.0, 1.0)) == 'strong step'
    assert shape_of(np.where(place < 7, 0.1, 0.5)) == 'step'
    assert shape_of(0.5 - 0.5 * np.cos(place / 3)) == 'strong oscillating'
    curve = np.stack([place < 20.0, np.zeros(40), np.full(40, 0.5)])[None]
    found = Neurons(curve, 100)
    assert found.positional.tolist() == [[True, False, False]]
    assert found.dead.tolist() == [[False, True, False]]
    assert ANALYSIS.report({'x': found}).rows[0][2:6] == (1, 1, 0, 1)


def test_frequencies_are_shares_of_the_sequences(tmp_path):
    found = positional_neurons(random_model(), TOKENS, batch=32)
    assert found.positional[0].mean() < 0.2
    mlp = random_states('decoder')[2]
    np.testing.assert_allclose(found.frequency[2, 5], (mlp[2, :, :, 5] > 0).mean(0))
    check_report(ANALYSIS, {'nope()': found}, tmp_path, rows=6)


@pytest.mark.full
def test_learned_positions_make_neurons_of_the_first_layer_positional():
    learned = nnx.clone(random_model(encoding='learned_absolute(max_len=64)', layers=2))
    wave = jnp.sin(jnp.arange(64)[:, None] * 0.2 + jnp.arange(64))
    state = nnx.state(learned.shared[0])
    assert [a.shape for a in jax.tree.leaves(state)] == [(64, 64)]
    nnx.update(learned.shared[0], jax.tree.map(lambda a: wave.astype(a.dtype), state))
    assert positional_neurons(learned, TOKENS, batch=32).positional[0].mean() > 0.5


@pytest.mark.full
def test_the_gate_of_a_swiglu_tells_activity():
    sizes = dict(vocab_size=9, train_len=8, layers=1, width=8, heads=2, mlp='swiglu')
    model = small_model(**sizes, encoding='alibi()')
    model.blocks[0].mlp.w_gate[...] = -jnp.abs(model.blocks[0].mlp.w_gate[...])
    found = positional_neurons(model, np.arange(16).reshape(2, 8) % 9)
    x = model.embedding[...]
    assert found.frequency.shape == (1, 32, 8) and x.shape == (9, 8)
    grown = nnx.clone(model)
    grown.blocks[0].mlp.w_in[...] = 0 * grown.blocks[0].mlp.w_in[...]
    same = positional_neurons(grown, np.arange(16).reshape(2, 8) % 9)
    np.testing.assert_array_equal(found.frequency, same.frequency)
