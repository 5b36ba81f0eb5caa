"""Learned sinks: weights by hand, the ordinary softmax as a limit, the gradient, refused heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from tests.golden_files import golden_suite
from tests.methods.pairs import attend, qkv

Q, K, V = qkv(9)


def build(arguments='', heads=4):
    return pj.make(f'attention_sink({arguments})', causal=True, heads=heads)


def two_equal_keys(case):
    encoding = build(f'initial={case["sink"]}', heads=1)
    zero = jnp.zeros((1, 2, 1, 2))
    return attend(encoding, zero, zero, jnp.eye(2)[None, :, None])[0, 1, 0]


test_golden = golden_suite('attention_sink', {'*.weights': (two_equal_keys, {'atol': 1e-6})})


def test_a_high_sink_takes_all():
    assert float(jnp.abs(attend(build('initial=100.0'), Q, K, V)).max()) < 1e-6


@pytest.mark.parametrize('how', [dict(implementation='dense'), dict(block=4)])
def test_the_sink_is_a_key_without_a_value(how):
    """A key whose logit is the sink and whose value is zero, in front of all others."""
    encoding, sinks = build(), jnp.asarray([-1.0, 0.0, 0.5, 2.0])
    encoding.parts[0].sinks[...] = sinks
    s = jnp.einsum('bihd,bjhd->bhij', Q, K) * Q.shape[-1] ** -0.5
    s = jnp.where(jnp.tril(jnp.ones(s.shape[2:], bool)), s, -jnp.inf)
    column = jnp.broadcast_to(sinks[:, None, None], (1, 4, 9, 1))
    w = jax.nn.softmax(jnp.concatenate([column, s], -1), axis=-1)[..., 1:]
    expected = jnp.einsum('bhij,bjhd->bihd', w, V)
    np.testing.assert_allclose(attend(encoding, Q, K, V, **how), expected, atol=2e-6)


def test_the_gradient_of_a_sink():
    """`-sum_i (1 - r_i) r_i (do_i . softmax out_i)`, r the share that the keys keep."""
    encoding = build('initial=0.3')
    graphdef, params, rest = nnx.split(encoding, nnx.Param, ...)
    aim = jax.random.normal(jax.random.key(0), V.shape)
    loss = lambda params: (attend(nnx.merge(graphdef, params, rest), Q, K, V, block=4) * aim).sum()
    found = jax.tree.leaves(jax.grad(loss)(params))[0]
    tok, part = pj.Tokens.of(length=9), pj.make('nope()', causal=True)
    plain, lse = pj.attend(part, Q, K, V, tok, tok, applied=pj.TOKEN_STAGE, return_lse=True)
    share = jax.nn.sigmoid(lse - 0.3)
    expected = -((1 - share) * share * (aim * plain).sum(-1)).sum((0, 1))
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_query_without_keys_gives_zeros():
    tok = pj.Tokens.of(valid=[[False] * 3 + [True] * 6])
    assert not attend(build(), Q, K, V, tok)[:, :3].any()
