"""Frequency usage against a layer-by-layer computation, and heads that attend by position against
the sheet's table.
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.lab.analyse.rope_usage import ANALYSIS, _usage, positional_head, rope_usage
from posenc_jax.methods.rope import rope, rope_frequencies
from tests.golden_files import golden
from tests.small_models import small_model

GOLDEN = golden('rope_usage')['values']
BASE = dict(vocab_size=13, train_len=16, layers=2, width=32, heads=4, kv_heads=2, encoding='rope()')
TOKENS = jax.random.randint(jax.random.key(1), (2, 9), 0, 13)
THETA = rope_frequencies(64, 10000.0)


model_of = functools.partial(small_model, **BASE)


def last_row(weights, shift, length, rotate=rope):
    """Logits of the last query, nearest key first, through the rotation and the scaled inner
    product of the library.
    """
    q, k = (
        jnp.broadcast_to(jnp.asarray(a, jnp.float32), (1, length, 1, 64))
        for a in positional_head(THETA, weights, shift)
    )
    pos = jnp.arange(length)[None]
    q, k = (jnp.swapaxes(rotate(a, pos), 1, 2) for a in (q, k))
    return np.asarray(scaled_dot_product(q[:, :, -1:], k)[0, 0, 0, ::-1])


def weights_of(keep):
    return np.where(np.arange(32) < keep, 50.0 / keep, 0.0)


@pytest.mark.parametrize(
    'name, shift, length',
    [('previous_256', 1, 256), ('previous_1024', 1, 1024), ('diagonal_1024', 0, 1024)],
)
def test_golden_probabilities_of_positional_heads(name, shift, length):
    for keep, expected in zip(GOLDEN['keep'], GOLDEN[name], strict=True):
        assert jax.nn.softmax(last_row(weights_of(keep), shift, length))[shift] == pytest.approx(
            expected, abs=6e-5
        )


def test_a_positional_head_peaks_at_its_shift_with_the_logits_of_the_equation():
    distance = np.arange(128)
    for shift in (0, 1, 17, 100):  # "decay with distance" is not implied
        weights = np.linspace(2.0, 0.5, 32)
        s = last_row(weights, shift, 128)
        np.testing.assert_allclose(
            s, np.cos(np.outer(distance - shift, THETA)) @ weights, atol=5e-5
        )
        assert s.argmax() == shift and s[shift] == pytest.approx(weights.sum(), abs=5e-5)


def test_larger_weights_come_arbitrarily_near_one_and_low_frequencies_do_not():
    high = lambda scale: jax.nn.softmax(last_row(weights_of(8) * scale, 1, 256))[1]
    assert high(1.0) < high(2.0) and high(4.0) > 1 - 1e-6
    low = weights_of(8)[::-1].copy()
    assert jax.nn.softmax(last_row(low, 1, 256))[1] < 0.05
    assert np.cos(44.0) == pytest.approx(0.99984, abs=1e-5)  # why one frequency alone is not enough


def test_without_rotation_equal_tokens_cannot_be_told_apart():
    s = last_row(weights_of(4), 1, 64, rotate=lambda a, pos: a)
    np.testing.assert_allclose(jax.nn.softmax(s), 1 / 64, atol=1e-6)


def test_the_lowest_plane_turns_within_long_contexts():
    turned = [8192 * rope_frequencies(width, 10000.0)[-1] for width in GOLDEN['head_dim']]
    np.testing.assert_allclose(turned, GOLDEN['lowest_plane_at_8192'], atol=6e-3)
    only_lowest = np.where(np.arange(32) == 31, 5.0, 0.0)
    assert np.ptp(last_row(only_lowest, 0, 64)) < 1e-3  # a semantic channel, nearby
    cut = pj.make('rope(freqs=p_rope(p=0.75))', head_dim=64)
    assert np.ptp(last_row(only_lowest, 0, 64, rotate=cut.rotate)) == 0  # and one at every distance


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'encoding',
    ['rope()', 'rope(layout="interleaved", partial=0.5)', 'rope(freqs=yarn(factor=4.0))'],
)
def test_usage_is_the_mean_norm_of_every_plane(encoding):
    model = model_of(encoding=encoding)
    usage = rope_usage(model, TOKENS)
    count, tok = usage.q.shape[-1], pj.Tokens.of(length=9)
    assert usage.q.shape == (2, 4, count) and usage.k.shape == (2, 2, count) and usage.count == 18
    pairs = [
        (t, t + count) if 'layout' not in encoding else (2 * t, 2 * t + 1) for t in range(count)
    ]
    x = model.embed(TOKENS, model.place(tok))
    for layer, (layer_type, block) in enumerate(model.layers()):
        q, k, _ = block.attention.qkv(block.attention_norm(x))
        for name, a in (('q', q), ('k', k)):
            expected = [np.sqrt(a[..., i] ** 2 + a[..., j] ** 2).mean((0, 1)) for i, j in pairs]
            np.testing.assert_allclose(
                getattr(usage, name)[layer], np.stack(expected, -1), rtol=1e-5
            )
        x = block(x, tok, model.encoding(layer_type, block))
    np.testing.assert_allclose(
        usage.product[1, 3], usage.q[1, 3] * usage.k[1, 1] / np.sqrt(8), rtol=1e-6
    )


def test_patterns_keep_the_order_of_layers():
    pattern = model_of(layers=4, pattern=('rope()', 'rope() | window(size=3)'))
    usage = rope_usage(pattern, TOKENS)
    x, tok = pattern.embed(TOKENS, pattern.place(pj.Tokens.of(length=9))), pj.Tokens.of(length=9)
    for layer, (layer_type, block) in enumerate(pattern.layers()):
        q = np.asarray(block.attention.qkv(block.attention_norm(x))[0])
        np.testing.assert_allclose(
            usage.q[layer], np.hypot(q[..., :4], q[..., 4:]).mean((0, 1)), rtol=1e-5
        )
        x = block(x, tok, pattern.encoding(layer_type, block))


def test_batches_merge_and_padding_does_not_count():
    model = model_of()
    whole, first, second = (
        rope_usage(model, TOKENS),
        rope_usage(model, TOKENS[:1]),
        rope_usage(model, TOKENS[1:]),
    )
    merged = first.merge(second)
    np.testing.assert_allclose(merged.q, whole.q, rtol=1e-5)
    assert merged.count == whole.count
    padded = rope_usage(
        model, jnp.pad(TOKENS, ((0, 0), (3, 0))), pj.Tokens.of(valid=np.arange(12)[None] >= 3)
    )
    np.testing.assert_allclose(padded.k, whole.k, rtol=1e-4)
    assert padded.count == whole.count
    with pytest.raises(ValueError, match='all of these are padding'):
        rope_usage(model, TOKENS, pj.Tokens.of(valid=np.zeros((2, 9), bool)))


def test_memory_grows_with_the_length_and_not_with_its_square():
    model = model_of(implementation='blocked', block=64, layers=1)
    shape = lambda length: (
        jax.ShapeDtypeStruct((1, length), jnp.int32),
        None,
        jax.ShapeDtypeStruct((1, length), bool),
    )
    size = lambda length: (
        _usage.lower(model, *shape(length)).compile().memory_analysis().temp_size_in_bytes
    )
    assert size(1024) < 2.5 * size(512)


def test_report_has_the_most_that_planes_add_by_layer(tmp_path):
    usage = rope_usage(model_of(), TOKENS)
    report = ANALYSIS.report({'rope()': usage})
    assert [row[:2] for row in report.rows] == [('rope()', n + 1) for n in range(len(usage.q))]
    all_planes, fastest, slowest, peak = report.rows[1][2:]
    mean, count = usage.product[1].mean(0), usage.product.shape[-1] // 4
    assert all_planes == pytest.approx(mean.sum()) and peak == mean.argmax()
    assert fastest == pytest.approx(mean[:count].sum())
    assert slowest == pytest.approx(mean[-count:].sum())
    assert report.text().splitlines()[0].split()[:2] == ['model', 'layer']
    pytest.importorskip('matplotlib')
    numbers, picture = report.write(tmp_path)
    found = json.loads(numbers.read_text())['rope()']
    np.testing.assert_allclose(found['product'], usage.product, rtol=1e-5)
    assert found['tokens'] == TOKENS.size and picture.read_bytes().startswith(b'\x89PNG')


def test_errors():
    for spec, message in [
        ('alibi()', 'rope_usage needs .* got alibi'),
        ('nope()', 'got 0 of them'),
    ]:
        with pytest.raises(ValueError, match=message):
            rope_usage(model_of(encoding=spec), TOKENS)
    with pytest.raises(ValueError, match=r'layers have \[2, 4\]'):
        rope_usage(model_of(pattern=('rope()', 'rope(partial=0.5)')), TOKENS)
    with pytest.raises(ValueError, match='one weight >= 0'):
        positional_head(THETA, -np.ones(32), 1)
