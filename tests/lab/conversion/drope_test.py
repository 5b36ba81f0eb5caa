"""DroPE: the factors of the paper, what a model without its rotation keeps, the losses before,
directly after and after recalibration, and errors.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.conversion.drope import drop, drope_schedule, inference_spec, recalibrate
from posenc_jax.lab.conversion.fit import fit
from posenc_jax.protocol.composite import name_of, parts_of
from tests.golden_files import golden, golden_suite
from tests.small_models import small_model

BASE = dict(encoding='', vocab_size=8, train_len=16, layers=2, width=16, heads=2)
model_of = functools.partial(small_model, **BASE)
read = jax.jit(lambda model, *text: model(*text))


SCALES = golden('drope')['scales']


def beta(_, slope):
    """The factor of the last query of s times L tokens, in a model that is dropped and extended."""
    model = drop(model_of(encoding='rope()')).extend(inference_spec(float(slope)))
    length = model.cfg.train_len
    tok, ones = pj.Tokens.of(length=length * max(SCALES)), jnp.ones((1, length * max(SCALES), 2, 8))
    (part,) = (own for own in parts_of(model.encoding(0, model.blocks[0])) if own.opens('project'))
    return part.project(ones, ones, ones, tok, tok)[0][0, length * np.array(SCALES) - 1, 0, 0]


test_golden = golden_suite('drope', {'beta.*': beta}, rtol=3e-7)


def tokens_of(length, rows=2):
    return jax.random.randint(jax.random.key(1), (rows, length), 0, 8)


def names(model, number=0):
    return [name_of(part) for part in parts_of(model.encoding(number, model.blocks[number]))]


def test_positions_have_no_effect_any_more():
    """The logits are those of `nope()` with the same weights, whatever the positions are."""
    model, tokens = model_of(encoding='rope()'), tokens_of(16)
    dropped, bare = drop(model), model_of(1, encoding='nope()')
    assert dropped.cfg.encoding == 'nope()' and names(dropped) == ['nope', 'causal', 'document']
    nnx.update(bare, nnx.state(model, lambda path, _: path[0] != 'shared'))
    expected = read(bare, tokens)
    np.testing.assert_array_equal(read(dropped, tokens), expected)
    elsewhere = pj.Tokens.of(positions=np.array([[5, 3, *range(90, 104)]]))
    np.testing.assert_allclose(read(dropped, tokens, elsewhere), expected, atol=1e-5)
    assert np.abs(read(model, tokens) - expected).max() > 1e-2


@pytest.mark.full
def test_the_order_of_earlier_tokens_has_no_effect_in_one_layer():
    tokens = tokens_of(16)
    swapped = tokens[:, jnp.array([2, 1, 0, *range(3, 16)])]
    one = model_of(encoding='rope()', layers=1)
    last = lambda model: [np.asarray(read(model, text)[:, -1]) for text in (tokens, swapped)]
    np.testing.assert_allclose(*last(drop(one)), atol=1e-5)
    assert np.abs(np.subtract(*last(one))).max() > 1e-4


def test_other_parts_stay_with_their_variables():
    model = model_of(pattern=('t5_rpe(buckets=8) | rope() | window(size=8)', 'nope()'))
    state = nnx.state(model)
    for leaf in jax.tree.leaves(state, is_leaf=lambda a: isinstance(a, nnx.Variable)):
        leaf.set_value(leaf.get_value() + 0.5)
    nnx.update(model, state)
    dropped = drop(model)
    assert dropped.cfg.pattern == ('t5_rpe(buckets=8) | nope() | window(size=8)', 'nope()')
    found, kept = (parts_of(m.encoding(0, m.blocks[0]))[0] for m in (dropped, model))
    leaves = jax.tree.leaves(nnx.state(found))
    assert leaves and all(map(np.array_equal, leaves, jax.tree.leaves(nnx.state(kept))))


@pytest.mark.full
def test_wrapped_rotations_are_dropped_and_mixers_stay():
    model = model_of(pattern=('self_extend(encoding=rope(), local=4)', 'gru()'))
    assert drop(model).cfg.pattern == ('nope()', 'gru()')


def test_the_factor_for_longer_texts():
    dropped = drop(model_of(encoding='rope()'))
    longer, text = dropped.extend(inference_spec(0.412)), tokens_of(32)
    early, late = np.s_[:, :16], np.s_[:, 16:]
    ours, plain = read(longer, text), read(dropped, text)
    np.testing.assert_allclose(ours[early], plain[early], atol=1e-6)
    assert np.abs(ours[late] - plain[late]).max() > 1e-4


def test_the_schedule_begins_anew_and_every_step_trains():
    for steps in (1, 2, 40):
        rates = drope_schedule(steps)(jnp.arange(steps))
        assert rates.min() > 0 and rates.max() == pytest.approx(1e-3)
    long = np.asarray(drope_schedule(2000)(jnp.arange(2000)))
    assert np.argmax(long) in (69, 70) and long[-1] < 1e-8 and (np.diff(long)[70:] < 0).all()


LAG = 2


def texts(rows, seed):
    """Each token is, nine times in ten, that of two places before."""
    rng = np.random.default_rng(seed)
    text, repeats = rng.integers(0, 8, (rows, 17)), rng.random((rows, 17)) < 0.9
    for i in range(LAG, 17):
        text[:, i] = np.where(repeats[:, i], text[:, i - LAG], text[:, i])
    return jnp.asarray(text, jnp.int32)


@pytest.mark.full
def test_recalibration_brings_back_most_of_what_dropping_destroys():
    def loss(model, _, text):
        logits = model(text[:, :-1])
        return optax.softmax_cross_entropy_with_integer_labels(logits, text[:, 1:]).mean(), None

    start = model_of(encoding='rope()')
    batches = texts(150 * 16, 0).reshape(150, 16, 17)
    trained, *_ = fit(start, start, loss, batches, optax.adam(3e-3))
    before = jax.tree.map(np.asarray, nnx.state(trained))
    held = texts(64, 2)
    dropped, losses = recalibrate(
        trained, texts(150 * 16, 1).reshape(150, 16, 17), held, optimizer=optax.adam(3e-3)
    )
    assert losses.dropped > losses.rotary + 0.3
    lost, left = losses.dropped - losses.rotary, losses.recalibrated - losses.rotary
    assert left < 0.5 * lost
    assert losses.rotary == pytest.approx(float(loss(trained, None, held)[0]), rel=1e-5)
    assert losses.recalibrated == pytest.approx(float(loss(dropped, None, held)[0]), rel=1e-5)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(nnx.state(trained))):
        np.testing.assert_array_equal(old, new)


def test_norms_and_the_parts_that_stay_do_not_decay():
    """With a single word there is nothing to learn: every gradient is 0."""
    model = model_of(encoding='t5_rpe(buckets=8) | rope()', vocab_size=1, layers=1)
    before = jax.tree.map(np.array, nnx.state(model))
    dropped, _ = recalibrate(model, jnp.zeros((2, 1, 9), int), jnp.zeros((1, 9), int))
    of = lambda model: (model.blocks[0].attention.w_q, model.norm.scale, model.shared[0].table)
    (w, *old), (decayed, *new) = (of(model) for model in (model, dropped))
    assert (np.abs(decayed[...]) < np.abs(w[...])).all()
    for a, b in zip(old, new, strict=True):
        np.testing.assert_array_equal(a[...], b[...])
    jax.tree.map(np.testing.assert_array_equal, before, nnx.state(model))


def calibrate(model, batches, held):
    return lambda: recalibrate(model(), jnp.zeros(batches, int), jnp.zeros(held, int))


ROTARY = functools.partial(model_of, encoding='rope()')


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'message, call',
    {
        'removes rotary positions, but the model has alibi': lambda: drop(
            model_of(encoding='alibi()')
        ),
        'lm_infinite rotates and masks keys too': lambda: drop(
            model_of(encoding='lm_infinite(encoding=rope(), n_global=2, n_local=4)')
        ),
        'per_head rotates and holds other encodings too': lambda: drop(
            model_of(encoding='per_head(first=rope(), second=nope(), heads_of_first=1)')
        ),
        'is not that of its config .* then extend': lambda: drop(ROTARY().extend('dca()')),
        "predicts the next token, got kind 'encoder'": calibrate(
            functools.partial(ROTARY, kind='encoder'), (1, 2, 9), (2, 9)
        ),
        r'batches \[steps, B, length\] .* got \(2, 9\)': calibrate(ROTARY, (2, 9), (2, 9)),
        r'texts have 2 .. 17 tokens, .* got 18': calibrate(ROTARY, (1, 2, 18), (2, 17)),
        'at least 1 step, got 0': lambda: drope_schedule(0),
        'slope must be at least 0, got -0.1': lambda: inference_spec(-0.1),
    }.items(),
)
def test_errors(message, call):
    with pytest.raises(ValueError, match=message):
        call()
