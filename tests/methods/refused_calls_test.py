"""What functions of methods and built encodings refuse, and what the message says."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import posenc_jax as pj
from posenc_jax.methods import longrope2, xlpe, yarn
from tests.methods.pairs import attend, draw, qkv
from tests.refusals import refused

of = pj.methods
ONE, X = jnp.ones(1), jnp.asarray(draw(0, 2, 3, 1, 4))


def of_heads(spec, built, given):
    """Attention with another number of heads than the encoding was built for."""
    sizes = dict(head_dim=8, model_dim=8, train_len=16, rngs=nnx.Rngs(0))
    part = pj.make(spec, heads=built, **sizes)
    return lambda: attend(part, *qkv(3, given), part.place(pj.Tokens.of(length=3)))


def components(spec):
    """Attention on tokens whose positions have two components."""
    part = pj.make(spec, heads=4, head_dim=8, model_dim=8)
    return lambda: attend(part, *qkv(2), pj.Tokens.of(positions=np.zeros((1, 2, 2))))


def rotary(base):
    return lambda: pj.Rotary(base, head_dim=8)


def reordered(*pairs):
    return lambda: xlpe.xlpe_order([(0, 0), *pairs], 4)


def layer_of_xlpe(level, positions):
    layer = pj.Attention(f'xlpe(level={level!r})', width=8, heads=4, causal=False, rngs=nnx.Rngs(0))
    return lambda: layer(draw(0, 1, 2, 8), pj.Tokens.of(positions=positions))


def temperature(**options):
    return lambda: yarn.yarn_temperature(4.0, **options)


test_another_number_of_heads = refused() | {
    'attention_sink has parameters of 3 heads, the queries': of_heads('attention_sink()', 3, 4),
    'bam has parameters of 1 heads, the queries have 4': of_heads('bam()', 1, 4),
    'kerple has parameters of 4 heads, the queries have 2': of_heads('kerple("weight")', 4, 2),
    'nope_temperature .*built for 2 heads, got 4': of_heads('nope_temperature((1.0, 2.0))', 2, 4),
    'rpe_convergent has parameters of 1 heads, the queries have 4': of_heads(
        'rpe_convergent()', 1, 4
    ),
    'ssmax has parameters of 1 heads, the queries have 4': of_heads('ssmax()', 1, 4),
    '^transformer_xl has parameters of 2 heads, the queries have 1': of_heads(
        'transformer_xl()', 2, 1
    ),
    '^randomized_transformer_xl has parameters of 2 heads, the queries have 1': of_heads(
        'randomized_transformer_xl(max_len=64)', 2, 1
    ),
    'tables for 4 heads, the queries have 2': of_heads('urpe(table="toeplitz", max_len=9)', 4, 2),
}
test_wrong_positions = refused() | {
    r'a distance needs one position per token .*\(1, 2, 2\), \(1, 2, 2\)': components('tapa()'),
    'positional_attention.* one position per token': lambda: (
        of.positional_attention.positional_attention_projected(
            jnp.zeros((1, 2, 2), int), jnp.zeros((4, 1, 4))
        )
    ),
    r'one position per token \[B, L\], got positions of shape \(1, 4, 2\)': lambda: (
        of.sandwich.sandwich_curve(jnp.zeros((1, 4, 2)), jnp.zeros((1, 4)))
    ),
    'needs integer positions, got float32': lambda: pj.make(
        'urpe(table="toeplitz", max_len=9)', heads=2, train_len=16
    ).index(X[..., 0, 0], X[..., 0, 0]),
    'position 8 is not in 0 .. 7': lambda: pj.make(
        'randomized_transformer_xl(max_len=8)', heads=2, head_dim=4, model_dim=8
    ).place(pj.Tokens.of(length=9)),
    r'xlpe needs positions \[B, L, 2\].*alignments, got': tuple(
        layer_of_xlpe(level, positions)
        for level in ('input', 'head')
        for positions in ([[0, 1]], [[[0, 1, 2], [0, 1, 2]]])
    ),
}
test_wrong_numbers = refused() | {
    'longrope2.*base must be above 1, got 1.0': lambda: longrope2.longrope2_critical_plane(
        8, 1.0, 64
    ),
    'periods must be positive, got 0': lambda: longrope2.longrope2_critical_plane(
        8, 1e4, 64, periods=0
    ),
    'fits into train_len, .* got train_len=6, length=64': lambda: longrope2.longrope2_base(
        1e4, 6, 64
    ),
    'got train_len=64, length=32': lambda: longrope2.longrope2_base(1e4, 64, 32),
    "irope_pattern is 'swam'; did you mean 'swan'": lambda: of.irope.irope_pattern('swam'),
    'size of swan must be at least 1, got 0': lambda: of.irope.irope_pattern('swan', 0),
    'size of smollm3 must be None, because it has no': lambda: of.irope.irope_pattern('smollm3', 8),
    'at least 4, got 2': lambda: of.ntk_aware.ntk_aware_base(2, 10000.0, 4.0),
    'power must be at least 0': lambda: of.ntk_rope_mixed.ntk_rope_mixed_frequencies(
        8, 1e4, 2.0, power=-1.0
    ),
    '6 x 8 cells cannot be anchored in steps of 4; .* 8 x 8': lambda: (
        of.polyphase_anchor.polyphase_anchor_image(jnp.ones((1, 6, 8, 1)), 4)
    ),
    **{
        f'positive and at most 4.189 radians, got {wrong}': lambda wrong=wrong: (
            of.resonance_rope.resonance_rope_frequencies(np.array([1.0, wrong]))
        )
        for wrong in (4.5, -0.1)
    },
    **{
        f'last lies in 0 .. 2, got {found}': lambda last=last: (
            of.reverse_pe.reverse_pe_newest_first(jnp.zeros((2, 3)), jnp.asarray(last))
        )
        for last, found in ((9, '9 .. 9'), ([0, -3], '-3 .. 0'))
    },
    'the base of rotary frequencies,? must be .*, got inf': rotary(float('inf')),
    'the base of rotary frequencies,? must be .*, got nan': rotary(float('nan')),
    r'the base of rotary frequencies,? must be .*, got 1e\+39': rotary(1e39),
    r'rope takes x of shape \[B, L, heads, H\] .*, got': (
        lambda: of.rope.rope(X[:, :, 0], jnp.arange(3)),
        lambda: of.rope.rope(X, jnp.zeros((2, 3, 1))),
    ),
    "did you mean 'type[12]'": lambda: of.rpe_convergent.rpe_convergent_bias(
        'type', ONE, jnp.zeros((1, 1)), jnp.zeros((1, 1))
    ),
    'soft_cap limit': tuple(
        lambda limit=limit: pj.make(of.soft_cap.SoftCap(limit))
        for limit in (0.0, -1.0, np.inf, np.nan)
    ),
    'a context and candidates of at least one token': tuple(
        lambda sizes=sizes: of.uni_encoder.uni_encoder_ids(*sizes)
        for sizes in ((0, [1]), (2, []), (2, [1, 0]), (2.5, [1]))
    ),
    'alignment 4-0 is outside a source of 4 words.*3': reordered((4, 0)),
    'alignment -1-0 is outside a source of 4 words.*3': reordered((-1, 0)),
    'alignment 0--2 is outside a source of 4 words.*3': reordered((0, -2)),
    'at least one word, got 0': lambda: xlpe.xlpe_order([], 0),
    'at least one key, got none': lambda: xlpe.xlpe_btg_order([]),
    'width 4, got 8': lambda: pj.make('xlpe()', heads=2, model_dim=4).embed(
        jnp.zeros((1, 2, 8)), pj.Tokens.of(positions=[[[0, 1], [1, 0]]])
    ),
    'yarn needs train_len': lambda: yarn.YaRN(factor=4.0),
    'base above 1': lambda: yarn.yarn_frequencies(16, 1.0, 4.0, 64),
    'must be positive and finite': (
        temperature(mscale=-1.0),
        temperature(mscale=1.0, mscale_all_dim=-7.2),
        temperature(mscale_all_dim=float('nan')),
    ),
}
