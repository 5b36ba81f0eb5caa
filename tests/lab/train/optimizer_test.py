"""The schedule, the rule of weight decay, and one update by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from ml_collections import ConfigDict

from posenc_jax.lab.model.parameters import decays
from posenc_jax.lab.model.transformer import abstract_model
from posenc_jax.lab.runs.sizes import make_task, model_config
from posenc_jax.lab.train.optimizer import make_optimizer, schedule
from tests.lab.train import tiny


def rates(**train):
    return schedule(ConfigDict(train))


# A quarter up; the peak; half way down; the end.
RATES = [(0, 0.25), (3, 1.0), (4, 1.0), (8, 0.55), (12, 0.1), (50, 0.1)]


@pytest.mark.parametrize('step, rate', RATES)
def test_schedule(step, rate):
    found = rates(lr=1.0, warmup=4, steps=12, end_lr_fraction=0.1)(jnp.int32(step))
    assert float(found) == pytest.approx(rate, abs=1e-6)


def test_no_warmup_starts_at_the_peak():
    assert float(rates(lr=2.0, warmup=0, steps=10, end_lr_fraction=0.0)(jnp.int32(0))) == 2.0


def test_the_first_rates_of_a_long_warmup_are_exact():
    found = rates(lr=1e-3, warmup=2000, steps=10_000, end_lr_fraction=0.1)(jnp.arange(2000))
    np.testing.assert_allclose(found, 1e-3 * np.arange(1, 2001) / 2000, rtol=2e-7)


def test_what_decays(tmp_path):
    config = tiny.config(tmp_path, model__norm='layernorm', model__mlp='swiglu')
    model = abstract_model(model_config(config, make_task(config)))
    rule = decays(model)
    leaves = jax.tree_util.tree_leaves_with_path(rule)
    flat = {jax.tree_util.keystr(path, simple=True, separator='.'): value for path, value in leaves}
    decaying = {name.split('.')[-1] for name, value in flat.items() if value}
    assert decaying == {'embedding', 'output', 'w_q', 'w_k', 'w_v', 'w_out', 'w_in', 'w_gate'}
    others = [name for name, value in flat.items() if not value]
    own = lambda name: name.split('.')[-1] in ('scale', 'bias') or 'shared' in name
    assert others and all(map(own, others))
    # The learned table is a matrix, but inside an encoding.
    assert any('shared' in name for name in others)
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert jax.tree.structure(rule) == jax.tree.structure(params)


def test_one_update_by_hand(tmp_path):
    fields = dict(train__lr=0.1, train__warmup=0, train__weight_decay=0.5, train__clip=1.0)
    train = tiny.config(tmp_path, **fields).train
    params = {'matrix': jnp.array([[2.0]]), 'scale': jnp.array([2.0])}
    optimizer = make_optimizer(train, {'matrix': True, 'scale': False})
    grads = {'matrix': jnp.array([[3.0]]), 'scale': jnp.array([4.0])}
    state = optimizer.init(params)
    updates, state = optimizer.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    # After one step Adam's direction is the sign of the gradient, whatever it was clipped to.
    np.testing.assert_allclose(params['matrix'], 2 - 0.1 * (1 + 0.5 * 2), rtol=1e-5)
    np.testing.assert_allclose(params['scale'], 2 - 0.1, rtol=1e-5)
    has_mu = lambda s: hasattr(s, 'mu')
    (moment,) = filter(has_mu, jax.tree.leaves(state, is_leaf=has_mu))
    # The norm 5 is clipped to 1.
    np.testing.assert_allclose(moment.mu['matrix'], (1 - train.b1) * 3 / 5, rtol=1e-5)
