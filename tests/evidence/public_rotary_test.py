"""The sweep of a public model: heads that are removed, and what its claims read."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from evidence.claims import CLAIMS
from evidence.claims.results import ResultRows
from evidence.experiments import public_needles as needles
from evidence.experiments import public_rotary as sweep
from evidence.experiments.tables import report
from posenc_jax.lab.analyse.states import over_layers
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.tasks.retrieval.ruler_lite import RulerLite

CFG = TransformerConfig(
    vocab_size=11, train_len=16, layers=3, width=16, heads=4, kv_heads=2, encoding='rope()'
)


@pytest.mark.full
def test_removed_heads_add_nothing_and_the_model_stays_as_it_is():
    model, tokens = Transformer(CFG, rngs=nnx.Rngs(0)), jnp.arange(14).reshape(1, 14) % 11
    before = model(tokens)
    assert np.array_equal(sweep.without(model, np.arange(0))(tokens), before)
    outs = sweep.without(model, np.array([1, 6])).blocks[0].attention.w_out[...]
    zero = [int(n) for n in np.flatnonzero(np.abs(outs).reshape(12, -1).max(1) == 0)]
    assert zero == [1, 6]  # head 1 of the first layer, head 2 of the second
    assert not np.allclose(sweep.without(model, np.array([1, 6]))(tokens), before)
    assert np.array_equal(model(tokens), before)


@pytest.mark.full
def test_attention_to_a_token_and_the_one_before():
    model, tokens = Transformer(CFG, rngs=nnx.Rngs(0)), jnp.arange(16).reshape(1, 16) % 11
    near = np.asarray(over_layers(model, tokens, sweep._near))
    assert near.shape == (3, 4)
    assert 0.02 < near.min() and near.max() < 0.6  # drawn weights: about two of 9 to 16 keys


ROWS = [
    ('slowest quarter', 'all heads', 0, 0.42),
    ('nearby attention', 'all heads', 0, 0.15),
    ('nearby attention', 'fast heads', 0, 0.45),
    ('loss', 'without positional heads', 1024, 5.0),
    ('loss', 'without drawn heads', 1024, 3.5),
]


def test_the_claims_read_what_the_sweep_writes(tmp_path):
    rows = []
    for seed in (0, 1, 2):
        rows += [(panel, name, x, seed, value) for panel, name, x, value in ROWS]
        for depth, gain in zip(sweep.DEPTHS, (0.0, 0.25, 0.5)):
            of_groups = 'right values', 'ms_poe_of_groups', depth, seed, 0.25 + gain
            rows += [('right values', 'plain', depth, seed, 0.25), of_groups]
    # Of eight numbers three are right, and with the released factor of STRING five.
    answered = [(name, [(0.4, n < right, 0.5) for n in range(8)]) for name, right in (
        ('none', 3), (needles.STRING, 2), (needles.RELEASED, 5),
    )]  # fmt: skip
    for seed in (0, 1, 2):
        rows += needles.rows(needles.GROUPS['within'][0], seed, answered)
    report(rows, tmp_path, title='t', x='x', value='value')
    found = {n: CLAIMS[n].how.effects(ResultRows(tmp_path)) for n in ('R2', 'R22', 'R23', 'R31')}
    assert found['R2'][0] == pytest.approx(0.17)
    assert found['R22'][1] == pytest.approx(0.25)
    assert found['R31'][2] == pytest.approx(1.5)
    assert found['R23'][0] == pytest.approx(0.25)


def test_numbers_are_found_by_their_digits():
    cfg = TransformerConfig(
        vocab_size=257, train_len=1024, layers=1, width=16, heads=2, encoding='rope()'
    )
    task = RulerLite('niah_multiquery', needles=2)
    found = list(needles.answers(Transformer(cfg, rngs=nnx.Rngs(0)), task, 0, 2, 600))
    assert len(found) == 4
    assert all(0.1 < place < 0.9 and not right and nats > 4 for place, right, nats in found)
