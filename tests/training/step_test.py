"""The step against plain numpy and against itself cut in parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from posenc_jax.core.encoding import Tokens
from posenc_jax.model.sharding import make_mesh
from posenc_jax.training import config as configs
from posenc_jax.training import step as steps
from tests.training import tiny


def trainer_of(tmp_path, **fields):
    config = tiny.config(tmp_path, **{'model__dropout': 0.0, **fields})
    cfg = configs.model_config(config, configs.make_task(config))
    return cfg, steps.make_trainer(cfg, config.train, config.seed, make_mesh(data=1, devices=jax.devices()[:1]))


def batch_of(seed=0, rows=8, length=32):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 257, (rows, length + 1)).astype(np.int32)
    mask = (rng.random((rows, length)) < 0.5).astype(np.float32)
    return {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:], 'loss_mask': mask}


def numpy_losses(trainer, cfg, state, batch):
    graphdef, *_ = steps.take_apart(steps.abstract_model(cfg))
    logits = np.asarray(nnx.merge(graphdef, state.params, state.constants)(batch['tokens']), np.float64)
    partition = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, batch['targets'][..., None], -1)[..., 0]
    return partition - chosen, partition, logits


def test_loss_is_the_masked_mean(tmp_path):
    cfg, trainer = trainer_of(tmp_path)
    state, batch = trainer.init(), batch_of()
    nll, _, logits = numpy_losses(trainer, cfg, state, batch)
    mask = batch['loss_mask']
    sums = trainer.evaluate(state, batch)
    assert float(sums['loss']) == pytest.approx((nll * mask).sum(), rel=1e-5)
    assert float(sums['targets']) == mask.sum()
    assert float(sums['correct']) == ((logits.argmax(-1) == batch['targets']) * mask).sum()
    _, metrics = trainer.step(state, batch)
    assert float(metrics['loss']) == pytest.approx((nll * mask).sum() / mask.sum(), rel=1e-5)


def test_what_is_not_scored_does_not_train(tmp_path):
    _, trainer = trainer_of(tmp_path)
    batch = batch_of()
    other = {**batch, 'targets': np.where(batch['loss_mask'] > 0, batch['targets'], 7)}
    one, two = (trainer.step(trainer.init(), b)[0].params for b in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, one, two)


def test_z_loss(tmp_path):
    cfg, trainer = trainer_of(tmp_path, train__z_loss=0.0)
    _, with_z = trainer_of(tmp_path, train__z_loss=0.5)
    batch, state = batch_of(), trainer.init()
    _, partition, _ = numpy_losses(trainer, cfg, state, batch)
    (_, plain), (_, added) = trainer.step(state, batch), with_z.step(with_z.init(), batch)
    assert float(plain['loss']) == float(added['loss'])  # what is reported is the cross-entropy alone
    graphdef, *_ = steps.take_apart(steps.abstract_model(cfg))

    def penalty(params):
        logits = nnx.merge(graphdef, params, {})(batch['tokens'])
        z = jax.nn.logsumexp(logits, -1)
        return 0.5 * (z**2 * batch['loss_mask']).sum() / batch['loss_mask'].sum()

    def nll(params):
        logits = nnx.merge(graphdef, params, {})(batch['tokens'])
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch['targets'])
        return (each * batch['loss_mask']).sum() / batch['loss_mask'].sum()

    fresh = trainer.init()
    np.testing.assert_allclose(penalty_value := float(penalty(fresh.params)), 0.5 * (partition**2 * batch['loss_mask']).sum()
                               / batch['loss_mask'].sum(), rtol=1e-5)  # fmt: skip
    assert penalty_value > 0
    expected = optax.global_norm(jax.grad(lambda p: nll(p) + penalty(p))(fresh.params))
    assert float(added['grad_norm']) == pytest.approx(float(expected), rel=1e-4)


def test_accumulation_changes_nothing(tmp_path):
    batch = batch_of()  # rows with different numbers of scored targets
    results = []
    for parts in (1, 2, 8):
        _, trainer = trainer_of(tmp_path, train__accumulate=parts)
        state, losses = trainer.init(), []
        for seed in range(3):
            state, metrics = trainer.step(state, batch_of(seed))
            losses.append([float(metrics[name]) for name in ('loss', 'grad_norm', 'param_norm')])
        results.append(losses)
    assert batch['loss_mask'].sum(1).std() > 0
    np.testing.assert_allclose(results[1], results[0], rtol=2e-5)
    np.testing.assert_allclose(results[2], results[0], rtol=2e-5)


def test_the_model_sees_what_the_batch_says(tmp_path):
    cfg, trainer = trainer_of(tmp_path)
    state, batch = trainer.init(), batch_of()
    positions = np.tile(np.arange(32, dtype=np.int32)[::-1], (8, 1))
    segment = np.repeat(np.array([[0, 1]], np.int32), 16, axis=1).repeat(8, 0)
    graphdef, *_ = steps.take_apart(steps.abstract_model(cfg))
    model = nnx.merge(graphdef, state.params, state.constants)
    for extra in ({'positions': positions}, {'segment': segment}, {'valid': batch['loss_mask'] > 0}):
        logits = model(jnp.asarray(batch['tokens']), Tokens.of(length=32, **extra))
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch['targets'])
        with_extra = float(trainer.evaluate(state, {**batch, **extra})['loss'])
        assert with_extra == pytest.approx(float((each * batch['loss_mask']).sum()), rel=1e-5)
        assert with_extra != pytest.approx(float(trainer.evaluate(state, batch)['loss']), rel=1e-5)


def test_randomness_derives_from_seed_and_step(tmp_path):
    def losses(**fields):
        _, trainer = trainer_of(tmp_path, model__dropout=0.5, **fields)
        state, found = trainer.init(), []
        for _ in range(3):
            state, metrics = trainer.step(state, batch_of())
            found.append(float(metrics['loss']))
        return found

    first = losses()
    assert losses() == first
    assert losses(seed=1) != first
    _, trainer = trainer_of(tmp_path, model__dropout=0.5, train__lr=1e-30)
    one = trainer.step(trainer.init(), batch_of())[1]['loss']
    later = trainer.step(dataclasses.replace(trainer.init(), step=jnp.int32(1)), batch_of())[1]['loss']
    assert float(one) != float(later)


def test_it_learns(tmp_path):
    _, trainer = trainer_of(tmp_path, train__steps=60)
    state, batch = trainer.init(), batch_of()
    first = None
    for _ in range(60):
        state, metrics = trainer.step(state, batch)
        first = float(metrics['loss']) if first is None else first
    assert float(metrics['loss']) < 0.8 * first
    assert int(state.step) == 60


def test_batch_that_the_mesh_does_not_divide(tmp_path):
    config = tiny.config(tmp_path, train__batch=6, train__accumulate=2)
    cfg = configs.model_config(config, configs.make_task(config))
    with pytest.raises(ValueError, match='batch 6 in 2 accumulated parts .* data x fsdp = 2: it must be a multiple of 4'):
        steps.make_trainer(cfg, config.train, 0, make_mesh(data=1, fsdp=2, devices=jax.devices()[:2]))
