"""Soft caps: the values, refused keys, the place in a chain, and refused limits."""

import jax
import jax.numpy as jnp
import numpy as np

import posenc_jax as pj
from posenc_jax.methods.soft_cap import soft_cap_logits
from posenc_jax.protocol.capabilities import first_carry
from tests.golden_files import golden_suite

T = pj.Tokens.of(length=6)


def scored(spec, s):
    encoding = pj.make(spec, heads=1, head_dim=4)
    return np.asarray(encoding.logits(s, None, None, T, T, None, first_carry(encoding, s, T))[0])


def capped(values):
    return soft_cap_logits(jnp.array(values['logits']), values['limit'])


test_golden = golden_suite('soft_cap', {'capped': capped}, rtol=1e-6)


def test_a_refused_key_stays_refused_and_has_no_gradient():
    s = jnp.array([-jnp.inf, 1.0])
    assert np.isneginf(soft_cap_logits(s, 2.0)[0])
    gradient = jax.grad(lambda s: soft_cap_logits(s, 2.0)[1])(s)
    assert gradient[0] == 0 and 0 < gradient[1] < 1


def test_what_stands_before_it_is_capped_and_what_stands_behind_it_is_not():
    s = 30 * jax.random.normal(jax.random.key(0), (1, 1, 6, 6))
    bias = scored('alibi()', jnp.zeros_like(s))
    np.testing.assert_allclose(scored('alibi() | soft_cap(2.0)', s), soft_cap_logits(s + bias, 2.0))
    np.testing.assert_allclose(
        scored('soft_cap(2.0) | alibi()', s), soft_cap_logits(s, 2.0) + bias, atol=1e-6
    )
