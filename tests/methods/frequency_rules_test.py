"""What rules for rotary frequencies have in common: the limit in which they are rope, the rotated
width, and what they refuse.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.rope import rope
from posenc_jax.protocol.errors import SpecError

X, POS = jax.random.normal(jax.random.key(0), (1, 9, 2, 16)), jnp.arange(9)[None]
LIMITS = (
    'abf(base=10000.0)',
    'giraffe()',
    'llama3_rope(factor=1.0)',
    f'longrope(long={(1.0,) * 8}, factor=1.0)',
    'ntk_aware(factor=1.0)',
    'p_rope(p=1.0)',
    'pi(factor=1)',
    'yarn(factor=1.0)',
)
LONG = (1.0, 2.0, 3.0, 4.0)
REFUSED = {  # rule -> what the message says, for a rotary width of 8
    'abf(base=-1.0)': 'at least 1, got -1',
    'dynamic_ntk(factor=0.5)': 'at least 1, got 0.5',
    'giraffe(factor=0.0)': 'at least 1, got 0.0',
    'giraffe(power=-1.0)': 'power must be at least 0, got -1.0',
    'giraffe(truncated=True, train_len=0)': 'needs train_len',
    'hope_rope(periods=0.0)': 'hope_rope periods must be positive, got 0.0',
    'hope_rope(train_len=0)': 'hope_rope needs train_len, the trained length in tokens',
    'hope_rope(train_len=6)': 'no plane completes periods=1.0 within train_len=6, so nothing would '
    'rotate; the least train_len is 7',
    'hope_rope(periods=4.0, train_len=25)': 'the least train_len is 26',
    'llama3_rope(factor=0.5)': 'at least 1, got 0.5',
    'llama3_rope(train_len=0)': 'needs train_len',
    'llama3_rope(low_freq_factor=4.0)': 'low_freq_factor=4.0, high_freq_factor=4.0',
    'longrope(long=(1.0, 2.0), factor=4.0)': '2 factors for a rotary width of 8, expected 4',
    f'longrope(long={LONG}, short=(1.0,), factor=4.0)': '4 long factors and 1 short',
    'longrope(long=(0.5, 2.0, 2.0, 2.0), factor=4.0)': 'a factor of long divides a frequency and '
    'must be at least 1, got 0.5',
    f'longrope(long={LONG}, factor=0.5)': 'at least 1, got 0.5',
    f'longrope(long={LONG}, factor=4.0, mode="short")': 'needs the list short',
    f'longrope(long={LONG}, factor=4.0, start=-1)': 'start must be at least 0',
    f'longrope(long={LONG}, factor=4.0, mode="long", dynamic=True)': "need mode='length'",
    f'longrope(long={LONG}, factor=4.0, magnitude="sue")': "magnitude='sue' is not",
    f'longrope(long={LONG}, factor=4.0, magnitude=-1.0)': 'must be positive',
    f'longrope(long={LONG}, factor=4.0, train_len=1)': 'at least 2, got 1',
    'longrope2(critical=0, tail=(4.0, 5.0), factor=4.0)': 'critical must be at least 1, got 0',
    'longrope2(critical=1, tail=(4.0, 5.0), factor=4.0)': 'are 3 planes, expected 4 for a rotary '
    'width',
    'longrope2(critical=4, tail=(), factor=4.0)': 'needs factors of the planes from the critical '
    'one',
    **dict.fromkeys(
        (
            f'longrope2(critical=2, tail={tail}, factor=4.0)'
            for tail in ((5.0, 4.0), (3.9, 5.0), (4.0, 8.1))
        ),
        'ascend between factor=4.0 and 8.0, got',
    ),
    'longrope2(critical=2, tail=(4.0, 5.0), factor=0.5)': 'at least 1, got 0.5',
    'longrope2(critical=2, tail=(4.0, 5.0), factor=4.0, train_len=1)': 'at least 2, got 1',
    'longrope2(critical=2, tail=(4.0, 5.0), factor=4.0, magnitude="sue")': "magnitude='sue' is not",
    'ntk_aware(factor=0.9)': 'at least 1, got 0.9',
    'ntk_rope_mixed(factor=0.5)': 'new length / trained length, must be at least 1, got 0.5',
    'ntk_rope_mixed(power=-1.0)': 'ntk_rope_mixed power must be at least 0, got -1.0',
    'p_rope(p=1.5)': 'must lie in [0, 1], got 1.5',
    'p_rope(keep="high")': 'highest',
    'pi(factor=0.5)': 'at least 1, got 0.5',
    'pi()': "pi needs 'factor'",
    'yarn(factor=0.5)': 'at least 1, got 0.5',
    'yarn(factor=4.0, ramp="linear")': 'ramp',
    'yarn(factor=4.0, beta_fast=1.0, beta_slow=2.0)': 'beta_slow < beta_fast',
    'yarn(factor=4.0, train_len=0)': 'needs train_len, the trained length in tokens, a positive '
    'integer; got 0',
    'yarn(factor=4.0, attn_factor=1.0)': 'attention_factor',
    'yarn()': "yarn needs 'factor', new length / trained length, unless dynamic=True",
    'yarn(factor=4.0, dynamic=True)': 'leave out factor=4.0',
    'yarn(dynamic=True, beta_fast=1.0, beta_slow=2.0)': 'beta_slow < beta_fast',
    'yarn(dynamic=True, attention_factor=0.0)': 'attention_factor must be positive, got 0.0',
}


def rotated(rule, x=X, partial=1.0):
    spec = f'rope(partial={partial}, freqs={rule})'
    return pj.make(spec, head_dim=x.shape[-1], train_len=64).rotate(x, POS)


@pytest.mark.parametrize('rule', LIMITS)
def test_without_an_extension_they_are_rope(rule):
    np.testing.assert_allclose(rotated(rule), rope(X, POS), atol=1e-6)


@pytest.mark.parametrize('rule', ['ntk_aware(factor=4.0)', 'yarn(factor=4.0)'])
def test_they_see_the_rotated_width(rule):
    half = rotated(rule, partial=0.5)
    np.testing.assert_allclose(half[..., :8], rotated(rule, X[..., :8]), atol=1e-6)
    np.testing.assert_array_equal(half[..., 8:], X[..., 8:])


@pytest.mark.parametrize('rule', REFUSED)
def test_wrong_values_are_refused(rule):
    with pytest.raises(SpecError, match=re.escape(REFUSED[rule])):
        pj.make(f'rope(freqs={rule})', head_dim=8, train_len=64)
