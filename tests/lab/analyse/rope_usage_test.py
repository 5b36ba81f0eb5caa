"""Frequency usage against a layer-by-layer computation, and heads that attend by position against
the sheet's table.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.products import scaled_dot_product
from posenc_jax.lab.analyse.rope_usage import ANALYSIS, positional_head, rope_usage
from posenc_jax.methods.rope import rope, rope_frequencies
from tests.golden_files import golden_suite
from tests.lab.analyse.by_hand import check_report, ids, layers_of, same_model_of

TOKENS = ids(2, 9)
THETA = rope_frequencies(64, 10000.0)


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


def probabilities(around, shift, length):
    """Of the key that a positional head looks for."""
    rows = [last_row(weights_of(keep), shift, length) for keep in around['keep']]
    return [jax.nn.softmax(row)[shift] for row in rows]


def lowest_planes(around):
    """Radians that the lowest plane turns within a long context."""
    return [8192 * rope_frequencies(width, 10000.0)[-1] for width in around['head_dim']]


test_golden = golden_suite(
    'rope_usage',
    {
        'previous_256': lambda around: probabilities(around, 1, 256),
        'previous_1024': lambda around: probabilities(around, 1, 1024),
        'diagonal_1024': lambda around: probabilities(around, 0, 1024),
        'lowest_plane_at_8192': (lowest_planes, {'atol': 6e-3}),
    },
    atol=6e-5,
)


def test_a_positional_head_peaks_at_its_shift_with_the_logits_of_the_equation():
    distance = np.arange(128)
    for shift in (0, 1, 17, 100):  # "decay with distance" is not implied
        weights = np.linspace(2.0, 0.5, 32)
        s = last_row(weights, shift, 128)
        expected = np.cos(np.outer(distance - shift, THETA)) @ weights
        np.testing.assert_allclose(s, expected, atol=5e-5)
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


def test_the_lowest_plane_is_a_semantic_channel_nearby():
    only_lowest = np.where(np.arange(32) == 31, 5.0, 0.0)
    assert np.ptp(last_row(only_lowest, 0, 64)) < 1e-3
    cut = pj.make('rope(freqs=p_rope(p=0.75))', head_dim=64)
    assert np.ptp(last_row(only_lowest, 0, 64, rotate=cut.rotate)) == 0  # at every distance


INTERLEAVED = 'rope(layout="interleaved", partial=0.5)'


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'fields',
    [
        dict(encoding='rope()'),
        dict(encoding=INTERLEAVED),
        dict(encoding='rope(freqs=yarn(factor=4.0))'),
        dict(layers=4, pattern=('rope()', 'rope() | window(size=3)')),
    ],
    ids=['half', 'interleaved', 'yarn', 'pattern'],
)
def test_usage_is_the_mean_norm_of_every_plane_in_the_order_of_the_layers(fields):
    model = same_model_of(**fields)
    usage, layers = rope_usage(model, TOKENS), model.cfg.layers
    count, interleaved = usage.q.shape[-1], fields.get('encoding') == INTERLEAVED
    assert usage.q.shape == (layers, 4, count) and usage.k.shape == (layers, 2, count)
    assert usage.count == 18
    first = np.arange(count) * (2 if interleaved else 1)
    second = first + (1 if interleaved else count)
    for layer, (_, q, k, _) in enumerate(layers_of(model, TOKENS)):
        for name, a in (('q', np.asarray(q)), ('k', np.asarray(k))):
            expected = np.hypot(a[..., first], a[..., second]).mean((0, 1))
            np.testing.assert_allclose(getattr(usage, name)[layer], expected, rtol=1e-5)
    expected = usage.q[1, 3] * usage.k[1, 1] / np.sqrt(8)
    np.testing.assert_allclose(usage.product[1, 3], expected, rtol=1e-6)


def test_report_has_the_most_that_planes_add_by_layer(tmp_path):
    usage = rope_usage(same_model_of(), TOKENS)
    name, layer, *shown, peak = ANALYSIS.report({'rope()': usage}).rows[1]
    mean, count = usage.product[1].mean(0), usage.product.shape[-1] // 4
    assert (name, layer, peak) == ('rope()', 2, mean.argmax())
    assert shown == pytest.approx([mean.sum(), mean[:count].sum(), mean[-count:].sum()])
    numbers = check_report(ANALYSIS, {'rope()': usage}, tmp_path, rows=2, says='fastest 1/4')
    np.testing.assert_allclose(numbers['rope()']['product'], usage.product, rtol=1e-5)
    assert numbers['rope()']['tokens'] == TOKENS.size
