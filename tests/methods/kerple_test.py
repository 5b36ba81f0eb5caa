"""KERPLE: the five kernels, their limits, and parameters that leave their bounds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods.alibi import alibi_bias, alibi_slopes
from posenc_jax.methods.kerple import clamp_through
from tests.golden_files import golden, golden_suite
from tests.methods.pairs import attend, bias_of, draw, qkv

GOLDEN = golden('kerple')['values']
KERNELS = ['log', 'power', 'log3', 'bias_wht', 'weight']
N = 4


def make(kernel, fixed=(), **values):
    encoding = pj.make(
        f'kerple(kernel={kernel!r}, fixed={tuple(fixed)!r})', heads=N, rngs=nnx.Rngs(0)
    )
    for name, value in values.items():
        encoding.raw[name][...] = jnp.broadcast_to(jnp.asarray(value, jnp.float32), (N,))
    return encoding


test_golden = golden_suite('kerple', atol=1e-6) | {
    'log.probabilities': lambda case: jax.nn.softmax(
        bias_of(make('log', a=case['a'], p=case['p']), case['length'])[0, -1]
    )
}


def test_power_with_exponent_one_is_alibi():
    pos = jnp.arange(30)[None]
    slopes = alibi_slopes(N)[:3].tolist() + [0.02]  # ALiBi's last slope lies below the bound 0.01
    bias = bias_of(make('power', fixed=('p',), a=slopes))
    np.testing.assert_allclose(bias, alibi_bias(jnp.array(slopes), pos, pos)[0], rtol=1e-6)


def test_log3_with_exponent_one_is_log():
    a, p = [0.1, 0.5, 1.0, 3.0], [0.2, 1.0, 1.7, 4.0]
    np.testing.assert_allclose(
        bias_of(make('log3', r1=p, r2=a, r3=1.0)), bias_of(make('log', a=a, p=p)), rtol=1e-6
    )


@pytest.mark.parametrize('kernel', ['log', 'power', 'log3', 'bias_wht'])
def test_no_bias_at_distance_zero_symmetric_and_falling(kernel):
    bias = np.asarray(bias_of(make(kernel)))
    assert (np.diagonal(bias, axis1=1, axis2=2) == 0).all()
    np.testing.assert_array_equal(bias, np.swapaxes(bias, 1, 2))
    assert (np.diff(bias[:, 0]) < 0).all()


def test_the_weight_multiplies_the_scores_before_the_bias():
    encoding, s = make('bias_wht', wa=0.3, wp=0.7), draw(0, 2, N, 30, 30)
    distance = np.abs(np.subtract.outer(np.arange(30), np.arange(30)))
    expected = s * np.exp(-0.3 * distance**0.7) + bias_of(encoding)
    np.testing.assert_allclose(scored(encoding, s), expected, atol=1e-6)
    diagonal = lambda a: np.diagonal(a, axis1=2, axis2=3)
    np.testing.assert_array_equal(diagonal(scored(encoding, s)), diagonal(s))


def scored(encoding, s):
    tok = pj.Tokens.of(length=s.shape[-1])
    return encoding.logits(s, None, None, tok, tok, None, ())[0]


def test_the_weight_kernel_alone_multiplies_the_scores_and_adds_nothing():
    case, s = GOLDEN['weight'], draw(0, 2, N, 4, 4)
    encoding = make('weight', wa=case['wa'], wp=case['wp'])
    distance = np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    expected = s * np.array(case['factors'])[distance]
    np.testing.assert_allclose(scored(encoding, s), expected, rtol=1e-6)
    assert set(encoding.parameters()) == {'wa', 'wp'} and (bias_of(encoding) == 0).all()


@pytest.mark.full
def test_the_composite_kernel_is_the_weight_and_then_the_bias():
    """So a chain gives what has no name of its own, the weight with a logarithmic bias."""
    weight, power = make('weight', wa=0.3, wp=0.7), make('power', a=0.4, p=1.3)
    log, both = make('log', a=0.4, p=1.3), make('bias_wht', wa=0.3, wp=0.7, a=0.4, p=1.3)
    q, k, v = qkv(19)
    chained = attend(pj.chain(weight, power), q, k, v)
    np.testing.assert_allclose(chained, attend(both, q, k, v), atol=1e-6)
    s = jnp.einsum('btnh,bsnh->bnts', q, k) / 8**0.5
    probabilities = jax.nn.softmax(scored(weight, s) + bias_of(log, 19))
    expected = jnp.einsum('bnts,bsnh->btnh', probabilities, v)
    np.testing.assert_allclose(attend(pj.chain(weight, log), q, k, v), expected, atol=1e-6)


def test_bounds():
    (a, low), (p, high) = GOLDEN['bounds']['a'], GOLDEN['bounds']['p']
    values = make('power', a=a, p=p).parameters()
    np.testing.assert_array_equal(values['a'], np.float32(low))
    np.testing.assert_array_equal(values['p'], np.float32(high))
    # No exponent of a distance.
    np.testing.assert_array_equal(make('log', p=p).parameters()['p'], np.float32(p))


def test_bounds_leave_the_gradient_as_it_is():
    values, slopes = jax.vmap(jax.value_and_grad(lambda x: clamp_through(x, 0.01, 2.0)))(
        jnp.array([-3.0, 0.5, 7.0])
    )
    np.testing.assert_allclose(values, [0.01, 0.5, 2.0], rtol=1e-6)
    assert slopes.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize('kernel', KERNELS)
@pytest.mark.parametrize('raw', [None, -0.3, 2.7], ids=['inside', 'below', 'above'])
@pytest.mark.full
def test_gradients_are_finite_and_pass_the_bounds(kernel, raw):
    encoding = make(kernel)
    if raw is not None:
        encoding = make(kernel, **{name: raw for name in encoding.raw})
    s, target = draw(1, 1, N, 9, 9), draw(2, 1, N, 9, 9)
    gradient = jax.grad(lambda e: (scored(e, s) * target).sum())(encoding)
    for name in encoding.raw:
        g = np.asarray(gradient.raw[name][...])
        assert np.isfinite(g).all() and (g != 0).all(), name


def test_fixed_parameters_stay_one_and_are_not_trained():
    encoding = make('bias_wht', fixed=('wa', 'wp'))
    assert {path[-1] for path, _ in nnx.to_flat_state(nnx.state(encoding, nnx.Param))} == {'a', 'p'}
    np.testing.assert_array_equal(encoding.parameters()['wp'], 1.0)


def test_initial_ranges():
    encoding = pj.make('kerple()', heads=4000, rngs=nnx.Rngs(3))
    for name, high in (('a', 1.0), ('p', 2.0)):
        values = np.asarray(encoding.raw[name][...])
        assert 0 <= values.min() < 0.01 * high and 0.99 * high < values.max() <= high
        assert values.mean() == pytest.approx(high / 2, rel=0.04)


def test_the_log_kernel_flattens_where_alibi_does_not():
    """The claim behind its extrapolation: the penalty of the far past grows without bound, but ever
    more slowly.
    """
    bias = np.asarray(bias_of(make('log', a=1.0, p=1.0), 1000))[0, -1]
    steps = np.diff(bias)
    assert (np.diff(steps) > 0).all() and steps[0] < 2e-3 < 0.5 < steps[-1]
