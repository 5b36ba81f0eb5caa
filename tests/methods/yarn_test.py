"""YaRN: the sheet's borders, ratios and temperatures; limits; what it does to logits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.base.double import Double
from posenc_jax.methods.rope import rope_frequencies
from posenc_jax.methods.yarn import YaRN, yarn_frequencies, yarn_temperature
from tests.golden_files import golden, golden_suite
from tests.methods.models import model_of, read
from tests.phases import FAR, error, wide, wide_theta

GOLDEN = golden('yarn')['values']
MODELS = {
    'b=1e6, D=128, L=32768, s=4': (128, 1e6, 4.0, 32768),
    'b=1e4, D=128, L=4096, s=16': (128, 1e4, 16.0, 4096),
    'b=1e4, D=16, L=64, s=4': (16, 1e4, 4.0, 64),
}


def ratio(width, base, *rule, **options):
    """The number by which the rule divides each frequency."""
    return rope_frequencies(width, base) / yarn_frequencies(width, base, *rule, **options)


def ratios(ramp):
    return lambda values: ratio(128, 1e4, 16.0, 4096, ramp=ramp)[values['planes']]


def temperatures(power):
    return lambda values: np.array([yarn_temperature(s) for s in values['factor']]) ** power


test_golden = golden_suite('yarn') | {
    'ratio': (ratios('index'), {'atol': 6e-5}),
    'ratio_rotations': (ratios('rotations'), {'atol': 6e-4}),
    'temperature': (temperatures(1), {'atol': 6e-7}),
    'logit_scale': (temperatures(2), {'atol': 6e-6}),
    'mscale_temperature': (
        lambda _: yarn_temperature(40.0, mscale=1.0, mscale_all_dim=0.8),
        {'atol': 6e-7},
    ),
}


@pytest.mark.parametrize('model', MODELS)
def test_golden_borders(model):
    found, factor = ratio(*MODELS[model]), MODELS[model][2]
    low, high = GOLDEN['borders'][model]
    np.testing.assert_allclose(found[: low + 1], 1.0)
    np.testing.assert_allclose(found[high:], factor)
    assert (found[low + 1 : high] > 1).all() and (found[low + 1 : high] < factor - 1e-6).all()


def test_given_temperatures():
    assert yarn_temperature(40.0, mscale=0.7, mscale_all_dim=0.7) == 1.0
    assert yarn_temperature(40.0, attention_factor=1.25, mscale=1.0, mscale_all_dim=0.8) == 1.25


def test_untruncated_borders_are_fractional():
    found = ratio(128, 1e4, 16.0, 4096, truncate=False)
    # The sheet's borders have three decimals.
    expected = 1 / (1 - (21 - 20.944) / (45.027 - 20.944) * 15 / 16)
    assert found[20] == 1.0 and found[21] == pytest.approx(expected, abs=3e-5)


def test_temperature_scales_logits_by_its_square_once():
    width, tok = 16, pj.Tokens.of(length=6)
    q, k = (jax.random.normal(jax.random.key(i), (1, 6, 2, width)) for i in range(2))

    def logits(spec):
        part = pj.make(spec, head_dim=width, train_len=64)
        q2, k2, *_ = part.project(q, k, k, tok, tok)
        return jnp.einsum('btnh,bsnh->bnts', q2, k2)

    by_parts = logits('rope(freqs=yarn(factor=4.0, attention_factor=1.0))')
    scaled = logits('rope(freqs=yarn(factor=4.0))')
    expected = GOLDEN['logit_scale'][0] * by_parts
    np.testing.assert_allclose(scaled, expected, rtol=2e-5, atol=2e-5)


def test_a_train_len_shorter_than_one_turn_interpolates_all_but_the_fastest_plane():
    np.testing.assert_allclose(ratio(16, 1e4, 4.0, 4), [1.0] + [4.0] * 7)


DYNAMIC = 'rope(freqs=yarn(dynamic=True{}))'


projected = jax.jit(lambda part, q, k, v, tok: part.project(q, k, v, tok, tok)[:3])


def pass_over(spec, length, width=16, train_len=8):
    """Queries, keys and values of one pass after `project`."""
    arrays = np.random.default_rng(0).standard_normal((3, 1, length, 2, width), np.float32)
    part = pj.make(spec, head_dim=width, train_len=train_len, causal=True)
    return projected(part, *arrays, pj.Tokens.of(length=length))


@pytest.mark.parametrize(
    'options',
    [
        '',
        ', attention_factor=1.0',
        ', mscale=1.0, mscale_all_dim=0.8',
        ', ramp="rotations", beta_fast=4.0',
    ],
)
@pytest.mark.parametrize('length', [1, 8, 9, 12, 31, 32, 100])
@pytest.mark.full_where(
    condition=lambda length, options: bool(options) and length != 12 or length in (1, 9, 31)
)
def test_dynamic_is_the_static_rule_of_the_current_length(length, options):
    """Up to the trained length that is rope (attention_factor=1.0: NTK by parts)."""
    static = f'rope(freqs=yarn(factor={length / 8}{options}))' if length > 8 else 'rope()'
    found = pass_over(DYNAMIC.format(options), length)
    for ours, expected in zip(found, pass_over(static, length)):
        np.testing.assert_allclose(ours, expected, atol=2e-5)
    if length > 8:
        assert np.abs(pass_over('rope()', length)[1] - found[1]).max() > 1e-2


@pytest.mark.parametrize('length', [1, 100, 4096])
def test_dynamic_up_to_the_trained_length_is_exactly_rope(length):
    inv_freq, m = YaRN(dynamic=True, train_len=4096)(128, 1e4, jnp.asarray([[length]]))
    np.testing.assert_array_equal(inv_freq[0, 0], Double.of(rope_frequencies(128, 1e4)))
    assert m.shape == (1, 1) and m[0, 0] == 1.0


def test_dynamic_phases_are_exact_at_two_million():
    part = pj.make(DYNAMIC.format(''), head_dim=128, train_len=4096)
    angles = jax.jit(lambda length: part.angles(jnp.asarray(FAR)[None], length)[0])
    ramp = np.clip((wide(np.arange(64)) - 20) / 26, 0, 1)  # the sheet's borders
    for length in (4096, 4097, 100_000, 2_000_001):
        inv_freq = wide_theta(128, 1e4) * (1 - ramp + ramp * 4096 / length)
        assert error(angles(jnp.asarray([[length]])), FAR, inv_freq) < 1e-6


def test_golden_ratios_and_temperature_of_a_dynamic_rule():
    inv_freq, m = YaRN(dynamic=True, train_len=4096)(128, 1e4, jnp.asarray(16 * 4096))
    divided = rope_frequencies(128, 1e4) / np.asarray(inv_freq)
    np.testing.assert_allclose(divided[GOLDEN['planes']], GOLDEN['ratio'], atol=7e-5)
    assert float(m) == pytest.approx(GOLDEN['temperature'][GOLDEN['factor'].index(16)], abs=6e-7)


def test_a_given_attention_factor_is_that_of_every_length():
    _, m = YaRN(dynamic=True, train_len=8, attention_factor=1.25)(16, 1e4, jnp.asarray([4, 80]))
    np.testing.assert_array_equal(m, [1.25, 1.25])


@pytest.mark.full
def test_documents_of_a_row_have_factors_of_their_own():
    rows = np.random.default_rng(0).standard_normal((3, 1, 30, 2, 16), np.float32)
    part = pj.make(DYNAMIC.format(''), head_dim=16, train_len=8)
    packed = pj.Tokens.of(segment=np.repeat([[0, 1]], [6, 24], axis=1))
    together = np.asarray(projected(part, *rows, packed)[1])
    for start, size in ((0, 6), (6, 24)):
        tok = pj.Tokens.of(length=size)
        alone = projected(part, *rows[:, :, start : start + size], tok)[1]
        np.testing.assert_allclose(together[:, start : start + size], alone, atol=1e-6)


@pytest.mark.full
def test_a_dynamic_extension_of_a_model():
    model, tokens = model_of('rope()', layers=1, width=32), jnp.arange(20)[None] % 11
    longer, static = model.extend('yarn(dynamic=True)'), model.extend('yarn(factor=2.5)')
    np.testing.assert_allclose(read(longer, tokens), read(static, tokens), atol=2e-5)
    np.testing.assert_allclose(read(longer, tokens[:, :8]), read(model, tokens[:, :8]), atol=1e-6)


def test_the_ramp_ends_at_the_width_not_at_its_last_plane():
    """8 planes whose ramp ends at 10: it is cut off at D - 1 = 15, as in the released code, so that
    the last one is at 0.7.
    """
    found = yarn_frequencies(16, 10.0, 4.0, 100) / rope_frequencies(16, 10.0)
    np.testing.assert_allclose(found, 1 - np.arange(8) / 10 * 0.75, rtol=1e-12)


def test_factors_as_an_array():
    factors = jnp.array([2.0, 4.0])
    found = jax.jit(lambda s: yarn_frequencies(16, 1e4, s, 64))(factors)
    expected = [yarn_frequencies(16, 1e4, s, 64) for s in (2.0, 4.0)]
    np.testing.assert_allclose(np.asarray(found), expected, rtol=1e-12)
