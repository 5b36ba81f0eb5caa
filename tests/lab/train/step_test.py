"""The step against plain numpy and against itself cut in parts."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from posenc_jax.lab.decoding.recurrence import segment_losses
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.inputs import OF_SOURCE, auxiliary_loss
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.runs.run import Run
from posenc_jax.lab.train import step as steps
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.protocol.tokens import Tokens
from tests.lab.train import tiny


def trainer_of(workdir='', **fields):
    config = tiny.config(workdir, **{'model__dropout': 0.0, 'model__layers': 1, **fields})
    run = Run.of(config)
    return run, steps.make_trainer(run, make_mesh(data=1, devices=jax.devices()[:1]))


@pytest.fixture(scope='module')
def plain():
    """A model without dropout and its trainer, compiled once."""
    return trainer_of()


def batch_of(seed=0, rows=8, length=32):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 257, (rows, length + 1)).astype(np.int32)
    mask = (rng.random((rows, length)) < 0.5).astype(np.float32)
    return {'tokens': tokens[:, :-1], 'targets': tokens[:, 1:], 'loss_mask': mask}


@functools.partial(jax.jit, static_argnums=0)
def _logits(graphdef, params, constants, tokens):
    return nnx.merge(graphdef, params, constants)(tokens)


def numpy_losses(run, state, batch):
    graphdef, *_ = steps.take_apart(run.model)
    logits = _logits(graphdef, state.params, state.constants, batch['tokens'])
    logits = np.asarray(logits, np.float64)
    partition = np.log(np.exp(logits).sum(-1))
    chosen = np.take_along_axis(logits, batch['targets'][..., None], -1)[..., 0]
    return partition - chosen, partition, logits


def test_what_no_device_holds_is_refused():
    trainer_of(train__batch=8, train__accumulate=4)
    batch = 10**7
    said = 'the state of training would take .* of a device, and a step at least .* more; it has'
    with pytest.raises(ValueError, match=said):
        trainer_of(train__batch=batch)
    trainer_of(train__batch=batch, train__accumulate=batch // 4)
    with pytest.raises(ValueError, match=r'would take 347 GiB of a device'):
        trainer_of(model__layers=10**7)


def test_loss_is_the_masked_mean(plain):
    run, trainer = plain
    state, batch = trainer.init({}), batch_of()
    nll, _, logits = numpy_losses(run, state, batch)
    mask = batch['loss_mask']
    sums = trainer.evaluate(state, batch)
    assert float(sums['loss']) == pytest.approx((nll * mask).sum(), rel=1e-5)
    assert float(sums['targets']) == mask.sum()
    assert float(sums['correct']) == ((logits.argmax(-1) == batch['targets']) * mask).sum()
    _, metrics = trainer.step(state, batch)
    assert float(metrics['loss']) == pytest.approx((nll * mask).sum() / mask.sum(), rel=1e-5)


@pytest.mark.full
def test_a_batch_is_read_in_segments_with_a_memory():
    batch = batch_of(rows=2) | {'loss_mask': np.ones((2, 32), np.float32)}
    read = {}
    for memory in (0, 8, 32):
        asked = dict(train__segment=8, train__memory=memory, train__batch=2)
        run, trainer = trainer_of(encoding='transformer_xl()', **asked)
        state = trainer.init({})
        graphdef, *_ = steps.take_apart(run.model)
        model = nnx.merge(graphdef, state.params, state.constants)
        read_segments = functools.partial(segment_losses, segment=8, length=memory)
        expected = jax.jit(read_segments)(model, batch['tokens'], batch['targets'])
        total = float(trainer.evaluate(state, batch)['loss'])
        assert total == pytest.approx(float(expected.sum()), rel=1e-5)
        if memory == 32:
            losses = numpy_losses(run, state, batch)[0]
        read[memory] = float(trainer.step(state, batch)[1]['loss'])
        assert read[memory] == pytest.approx(float(expected.mean()), rel=1e-5)
    assert read[32] == pytest.approx(losses.mean(), rel=1e-5)
    assert min(abs(read[0] - read[8]), abs(read[8] - read[32])) > 1e-4 * read[32]


def test_solved_rows(plain):
    run, trainer = plain
    state, batch = trainer.init({}), batch_of()
    _, _, logits = numpy_losses(run, state, batch)
    right = logits.argmax(-1).astype(np.int32)
    # Three rows right, five wrong.
    targets = np.where(np.arange(8)[:, None] < 3, right, (right + 1) % 257)
    batch['loss_mask'][0] = 0  # and one of the three without a target
    sums = trainer.evaluate(state, {**batch, 'targets': targets})
    assert (float(sums['solved']), float(sums['rows'])) == (2, 7)


def test_what_is_not_scored_does_not_train(plain):
    _, trainer = plain
    batch = batch_of()
    other = {**batch, 'targets': np.where(batch['loss_mask'] > 0, batch['targets'], 7)}
    one, two = (trainer.step(trainer.init({}), b)[0].params for b in (batch, other))
    chex.assert_trees_all_equal(one, two)


@pytest.mark.full
def test_z_loss(plain):
    run, trainer = plain
    _, with_z = trainer_of(train__z_loss=0.5)
    batch = batch_of()
    stepped = lambda own: own.step(own.init({}), batch)[1]
    without, added = stepped(trainer), stepped(with_z)
    # What is reported is the cross-entropy alone.
    assert float(without['loss']) == float(added['loss'])
    graphdef, *_ = steps.take_apart(run.model)
    state = trainer.init({})

    def loss(params):
        logits = nnx.merge(graphdef, params, state.constants)(batch['tokens'])
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch['targets'])
        each = nll + 0.5 * jax.nn.logsumexp(logits, -1) ** 2
        return (each * batch['loss_mask']).sum() / batch['loss_mask'].sum()

    expected = float(optax.global_norm(jax.jit(jax.grad(loss))(state.params)))
    assert float(added['grad_norm']) == pytest.approx(expected, rel=1e-4)
    assert float(without['grad_norm']) != pytest.approx(expected, rel=1e-2)


def test_accumulation_changes_nothing(plain):
    assert batch_of()['loss_mask'].sum(1).std() > 0  # rows differ in the number of scored targets
    results = []
    for _, trainer in (plain, trainer_of(train__accumulate=4)):
        state, found = trainer.init({}), []
        for seed in range(3):
            state, metrics = trainer.step(state, batch_of(seed))
            found.append([float(metrics[name]) for name in ('loss', 'grad_norm', 'param_norm')])
        results.append(found)
    np.testing.assert_allclose(results[1], results[0], rtol=2e-5)


def test_the_model_sees_what_the_batch_says(plain):
    run, trainer = plain
    state, batch = trainer.init({}), batch_of()
    extra = {
        'positions': np.tile(np.arange(32, dtype=np.int32)[::-1], (8, 1)),
        'segment': np.repeat(np.array([[0, 1]], np.int32), 16, axis=1).repeat(8, 0),
        'valid': np.tile(np.arange(32) < 30, (8, 1)),
    }
    graphdef, *_ = steps.take_apart(run.model)
    model = nnx.merge(graphdef, state.params, state.constants)
    for names in (('positions',), ('segment', 'valid')):
        known = {name: extra[name] for name in names}
        logits = model(jnp.asarray(batch['tokens']), Tokens.of(length=32, **known))
        each = optax.softmax_cross_entropy_with_integer_labels(logits, batch['targets'])
        found = float(trainer.evaluate(state, {**batch, **known})['loss'])
        assert found == pytest.approx(float((each * batch['loss_mask']).sum()), rel=1e-5)
        assert found != pytest.approx(float(trainer.evaluate(state, batch)['loss']), rel=1e-5)


@pytest.mark.full
def test_randomness_derives_from_seed_and_step():
    _, trainer = trainer_of(model__dropout=0.5)
    _, other = trainer_of(model__dropout=0.5, seed=1)

    def loss(trainer, step):
        state = dataclasses.replace(trainer.init({}), params=params, step=jnp.int32(step))
        return float(trainer.step(state, batch_of())[1]['loss'])

    params = jax.device_get(trainer.init({}).params)
    assert loss(trainer, 0) == loss(trainer, 0)
    assert len({loss(trainer, 0), loss(trainer, 1), loss(other, 0)}) == 3


def test_it_learns(plain):
    _, trainer = plain
    state, batch, found = trainer.init({}), batch_of(), []
    for _ in range(24):
        state, metrics = trainer.step(state, batch)
        found.append(float(metrics['loss']))
    assert found[-1] < 0.9 * found[0]
    assert int(state.step) == 24


def test_batch_that_the_mesh_does_not_divide(tmp_path):
    config = tiny.config(tmp_path, train__batch=6, train__accumulate=2)
    said = 'batch 6 in 2 accumulated parts .* fsdp = 2: it must be a multiple of 4'
    with pytest.raises(ValueError, match=said):
        steps.make_trainer(Run.of(config), make_mesh(data=1, fsdp=2, devices=jax.devices()[:2]))


SEQPE = 'seqpe(max_pos=100, draws=8, candidates=4, offsets=4, contrastive=1.0, std=0.1)'
SHALLOW = SEQPE.replace('draws', 'layers=1, draws')


@pytest.mark.full
def test_the_terms_of_encodings_are_added_to_the_objective_alone(plain):
    """The first step of SGD moves the parameters against the gradient of the sum; the loss that is
    reported is that of the task.
    """
    run, trainer = trainer_of(encoding=SHALLOW, train__warmup=1)
    state, batch = trainer.init({}), batch_of()
    graphdef, *_ = steps.take_apart(run.model)
    key = jax.random.fold_in(jax.random.key(0), 0)
    tok = Tokens.of(length=32)

    def terms(params):
        model = nnx.merge(graphdef, params, state.constants)
        logits = model(batch['tokens'], tok, key=key, train=True)
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch['targets'])
        task = (nll * batch['loss_mask']).sum() / batch['loss_mask'].sum()
        (part,) = [part for part in model.shared if part.opens('auxiliary_loss')]
        place_key = jax.random.fold_in(jax.random.split(key, 3)[0], list(model.shared).index(part))
        return task, part.auxiliary_loss(None, None, key=place_key)

    added = lambda params: (sum(found := terms(params)), found)
    gradient, (task, extra) = jax.jit(jax.grad(added, has_aux=True))(state.params)
    _, metrics = trainer.step(state, batch)
    assert float(metrics['loss']) == pytest.approx(float(task), rel=1e-5)
    assert float(metrics['auxiliary_loss']) == pytest.approx(float(extra), rel=1e-4)
    norm = float(optax.global_norm(gradient))
    assert float(metrics['grad_norm']) == pytest.approx(norm, rel=1e-3)
    run, trainer = plain
    assert 'auxiliary_loss' not in trainer.step(trainer.init({}), batch)[1]


def test_the_term_of_an_encoding_is_the_mean_of_the_parts(toys):
    _, trainer = trainer_of(encoding='toy_term()', train__accumulate=2)
    _, metrics = trainer.step(trainer.init({}), batch_of())
    assert float(metrics['auxiliary_loss']) == 2.0


@pytest.mark.full
def test_training_with_a_term_of_an_encoding_in_parts():
    """Accumulated parts report the mean of their terms, and both losses fall."""
    _, trainer = trainer_of(encoding=SEQPE, train__accumulate=2, train__warmup=1)
    state, batch, seen = trainer.init({}), batch_of(), []
    for _ in range(30):
        state, metrics = trainer.step(state, batch)
        seen.append((float(metrics['loss']), float(metrics['auxiliary_loss'])))
    loss, term = np.array(seen).T
    assert np.isfinite(seen).all() and loss[-1] < loss[0] - 0.5
    assert term[0] == pytest.approx(np.log(4), abs=0.6)  # not twice as much
    assert term[-5:].mean() < term[:5].mean() - 0.1


@pytest.mark.full
def test_every_stack_counts_each_of_its_parts_once():
    """Two layer types share one part; the encoder of a source has its own part and its own key."""
    spec = SHALLOW.replace('std=0.1', 'std=0.1, dropout=0.0')
    sizes = dict(vocab_size=7, train_len=8, layers=2, width=16, heads=4)
    cfg = TransformerConfig(
        kind='encoder_decoder', source_size=5, source_len=6, encoding='',
        pattern=(spec, f'{spec} | alibi()'), source_encoding=spec, **sizes,
    )  # fmt: skip
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    batch = {'tokens': jnp.zeros((2, 8), jnp.int32), 'source': jnp.zeros((2, 6), jnp.int32)}
    key = jax.random.key(4)

    def term(stack, key):
        opens = lambda pair: pair[1].opens('auxiliary_loss')
        ((number, part),) = filter(opens, enumerate(stack.shared))
        own = jax.random.fold_in(jax.random.split(key, 3)[0], number)
        return part.auxiliary_loss(jnp.zeros((2, 8, 16)), Tokens.of(length=8), key=own)

    @jax.jit
    def both(model, batch):
        expected = term(model, key) + term(model.encoder, jax.random.fold_in(key, OF_SOURCE))
        return auxiliary_loss(model, batch, key), expected

    np.testing.assert_allclose(*both(model, batch), rtol=1e-5)
    plain = Transformer(TransformerConfig(encoding='alibi()', **sizes), rngs=nnx.Rngs(0))
    assert auxiliary_loss(plain, {'tokens': batch['tokens']}, key) is None
