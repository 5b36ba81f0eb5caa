"""Limits in which an encoding is another one: the attention of a text, by both spec strings."""

import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from tests.methods.pairs import attend, draw, grid, qkv

WITHIN = 'lm_infinite(encoding={}, n_global=3, n_local=12)'
KERPLE, T5 = 'kerple(kernel="bias_wht")', 't5_rpe(scaled=False)'  # these change the logit itself
PARTIAL = 'rope(partial=0.5, layout="interleaved"{})'
YARN = 'rope(freqs=yarn(factor=4.0, train_len=8))'
RATIO = 'ms_poe(encoding={}, r_min={}, r_max={})'
GROUPS = 'self_extend(encoding=rope(), group={}, local={}, floor={})'
LEAKY = GROUPS.format(3.0, 4, False)
LIMITS = {  # one spec string, the other -> how far the results may be apart
    ('alibi(variant="offset")', 'alibi()'): 1e-6,
    ('alibi(variant="asymmetric")', 'alibi()'): 1e-6,
    ('alibi_symmetric()', 'alibi()'): 0,
    ('alibi_symmetric() | full()', 'alibi() | full()'): 0,
    ('attention_sink(initial=-100.0)', 'nope()'): 1e-6,
    ('bam()', 'alibi()'): 1e-5,
    ('bam(beta=0.0)', 'nope()'): 1e-6,
    ('dca(encoding=rope(), chunk=12, local=2)', 'rope()'): 1e-6,
    ('fox(gate_bias=40.0)', 'nope()'): 2e-6,
    ('leaky_rerope(encoding=rope(), factor=1.0)', 'rope()'): 1e-6,
    ('leaky_rerope(encoding=rope(), factor=3.0, local=4)', f'log_length() | {LEAKY}'): 0,
    ('leaky_rerope(encoding=rope(), factor=3.0, local=4, logn=False)', LEAKY): 0,
    (WITHIN.format(YARN), YARN): 1e-6,
    (WITHIN.format(KERPLE), KERPLE): 1e-6,
    (WITHIN.format(T5), T5): 1e-6,
    ('log_length(train_len=4) | rope()', 'rope() | log_length(train_len=4)'): 1e-6,
    (RATIO.format('rope()', 1.0, 1.0), 'rope()'): 2e-6,
    (RATIO.format('rope()', 1.0, 1.0), 'rope(freqs=pi(factor=1.0))'): 2e-6,
    (RATIO.format(PARTIAL.format(''), 2.5, 2.5), PARTIAL.format(', freqs=pi(factor=2.5)')): 2e-6,
    (RATIO.format(YARN, 1.0, 1.0), YARN): 2e-6,  # with its temperature
    ('nope_temperature()', 'nope()'): 0,
    ('nope_temperature(per_head=True)', 'nope()'): 0,
    ('nope_temperature(slope=0.0)', 'nope()'): 0,
    ('rerope(encoding=rope(), local=12)', 'rope()'): 1e-6,
    ('rerope(encoding=rope(), local=4)', f'log_length() | {GROUPS.format(None, 4, True)}'): 0,
    ('rerope(encoding=rope(), local=4, logn=False)', GROUPS.format(None, 4, True)): 0,
    ('rope_alibi_harmonic(weight=0.0)', 'rope()'): 1e-6,
    ('rope_alibi_harmonic(mode="heads", weight=0.0)', 'rope()'): 1e-6,
    ('rope_alibi_harmonic(mode="product", weight=0.0)', 'rope()'): 1e-6,
    (GROUPS.format(1, 4, True), 'rope()'): 1e-6,
    (GROUPS.format(1.0, 4, False), 'rope()'): 1e-6,
    (GROUPS.format(2, 12, True), 'rope()'): 1e-6,
    (GROUPS.format(None, 12, True), 'rope()'): 1e-6,
    (GROUPS.format(None, 4, True), 'lm_infinite(encoding=rope(), n_global=12, n_local=4)'): 2e-6,
    ('shaw(max_distance=3, std=0.0)', 'nope()'): 1e-6,
    ('string(encoding=rope(), shift=12, local=2)', 'rope()'): 1e-6,
    ('string(encoding=rope(), shift=4, local=4)', 'rope()'): 1e-6,
    ('t5_rpe(std=0.0)', 'nope()'): 0,
    ('transformer_xl(std=0.0)', 'nope()'): 2e-6,
    ('urpe(std=0.0)', 'nope()'): 1e-6,
    ('xpos(scale_base=1e9)', 'rope()'): 1e-5,
    ('xpos_abf()', 'xpos(base=500000.0)'): 0,
}
ON_GRID = ('beit_table(3, 4)', 'irpe(on="qkv")', 'swin_table(3, 4, std=0.0)')  # as nope()
TEXT, GRID = pj.Tokens.of(length=12), pj.Tokens.of(positions=grid(3, 4, beside=0))


def result(spec, tok=TEXT, causal=True):
    sizes = dict(heads=4, kv_heads=2, head_dim=8, model_dim=8, train_len=12)
    encoding = pj.make(spec, causal=causal, rngs=nnx.Rngs(0), **sizes)
    return attend(encoding, *qkv(12, 4, 2), tok, draw(3, 1, 12, 8))


@pytest.mark.parametrize('spec, other', LIMITS)
def test_limits(spec, other):
    np.testing.assert_allclose(result(spec), result(other), rtol=0, atol=LIMITS[spec, other])


@pytest.mark.parametrize('spec', ON_GRID)
def test_limits_on_a_grid(spec):
    plain = result('nope()', GRID, causal=None)
    np.testing.assert_allclose(result(spec, GRID, causal=None), plain, rtol=0, atol=1e-6)
