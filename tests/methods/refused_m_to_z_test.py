"""What the encodings from `md_lrpe` to `yarn` refuse in a spec string, and what the message says.

What a rule for frequencies refuses is in `frequency_rules_test.py`.
"""

import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.protocol.errors import SpecError

SIZES = dict(heads=4, kv_heads=2, head_dim=8, model_dim=8, train_len=64)
LONG = 'rope(freqs=longrope(long=(1.0, 2.0, 3.0, 4.0), start=2, factor=4.0, mode="long"))'
ROTARY_PART = {  # argument -> message of all extensions that change rotary distances
    'encoding=alibi()': 'rotary encoding, got alibi',
    'encoding=rope(freqs=dynamic_ntk())': 'do not depend on the current length',
    f'encoding={LONG}': 'use start=0',
    '': 'extends another encoding',
}
REFUSED = {  # spec -> what the message says
    **{
        f'{key}({argument})': message
        for key in ('ms_poe', 'self_extend', 'string')
        for argument, message in ROTARY_PART.items()
    },
    'md_lrpe(components=5)': 'components must lie in 1 .. 4',
    'md_lrpe(form="turn")': "did you mean 'rotate'|one of",
    'md_lrpe(prefix=-1)': 'at least 0',
    'md_lrpe(base=0.5)': 'at least 1',
    'ms_poe(encoding=rope(), r_min=0.0)': 'r_min must be positive, got 0.0',
    'ms_poe(encoding=rope(), r_min=2.0, r_max=1.5)': 'at least r_min=2.0, got 1.5',
    'ms_poe(encoding=rope(), order=(0, 1))': r'each of the heads 0 \.\. 3 once',
    'ms_poe(encoding=rope(), order=(0, 1, 2, 2))': 'once, got',
    'ms_poe(encoding=rope(), order=(0, 1, 2, 3), assign="normal")': 'takes no order',
    'ms_poe(encoding=rope(), assign="ranks")': "one of 'rank', 'code', 'normal'",
    'nope_temperature(0.0)': 'temperature must be positive, got 0.0',
    'nope_temperature((1.0, -1.0, 1.0, 1.0))': 'temperature must be positive, got',
    'nope_temperature((1.0, 2.0))': 'temperature must be a tuple of heads=4 entries, got',
    'nope_temperature(0.8, per_head=True)': 'trained temperatures are at least 1, got 0.8',
    'nope_temperature(slope=-0.1)': 'slope must be at least 0, got -0.1',
    'nope_temperature(slope=0.1, train_len=0)': 'length in tokens, must be at least 1, got 0',
    'papeft(width=0)': 'width must be at least 1, got 0',
    'path(rank=0)': 'rank must be at least 1, got 0; None is accepted too',
    'pcm(components=0)': 'components must be at least 1, got 0',
    'pcm(hidden=-1)': 'hidden must be at least 0, got -1',
    'pcm(depth=-1)': "depth must be at least 0, got -1; 'every' is accepted too",
    'pcm(depth="all")': "depth='all' is not",
    'peg(kernel=4)': 'peg kernel must be odd, so that it has a middle; got 4, nearest: 3 or 5',
    'peg(kernel=0)': 'peg kernel must be odd.* got 0, nearest: 1',
    'peg(depth=-1)': 'peg depth .* at least 0, got -1',
    'peg(padding="mirror")': "padding='mirror' is not one of 'zeros', 'circular'",
    'per_head(rope(), alibi(), 4)': r'1 .. 3 of 4 heads, got 4',
    'per_head(rope(), alibi(), 3)': '3 heads cut a group of 2 that share a key head; use 2',
    'per_head(sinusoidal(), alibi(), 2)': "sinusoidal opens 'embed'",
    'per_head(rope(), path(), 2)': "path opens 'update_keys'",
    'per_head(tape(), nope(), 2)': "tape opens 'begin_stream', which heads share",
    'per_head(rope(freqs=dynamic_ntk()), alibi(), 2)': 'rope are cached raw',
    'per_head(full(), alibi(), 2)': 'disagree',
    'per_head(rope(), alibi(), 2) | rope()': 'per_head and rope both rotate',
    'polyphase_anchor(kernel=2)': 'polyphase_anchor kernel must be odd',
    'polyphase_anchor(depth=-2)': 'polyphase_anchor depth',
    'position_coupling(max_position=0)': 'max_position must be at least 1, got 0',
    'position_coupling(max_position=4, components=0)': 'components must be at least 1, got 0',
    'position_coupling(max_position=64, table=False) | learned_absolute(max_len=20)': (
        'position_coupling draws positions 0 .. 64, learned_absolute has 20'
    ),
    'positional_attention()': 'needs max_len of at least 1',
    'positional_attention(max_len=0)': 'needs max_len of at least 1',
    'positional_attention(max_len=4, width=4)': 'and no width',
    'positional_attention(max_len=4, table="sinusoidal")': 'and no max_len',
    'positional_attention(table="sinusoidal", width=1)': 'width of at least 2',
    'positional_attention(table="sinus")': ("table='sinus' is not one of 'identity', 'sinusoidal'"),
    'positional_attention(max_len=4) | tapa()': 'positional_attention and tapa both need',
    'randomized_pe(max_len=64) | positional_attention(max_len=9)': (
        'draws positions 0 .. 63, positional_attention has 9'
    ),
    'positional_description(width=0)': 'width must be at least 1 and below model_dim=8, got 0',
    'positional_description(width=8)': 'width must be at least 1 and below model_dim=8, got 8',
    'prefix(length=0)': 'prefix length must be at least 1, got 0',
    'randomized_alibi(max_len=0)': 'max_len must be at least 1 .*, got 0',
    'randomized_alibi(max_len=8, eval_len=9)': (
        'eval_len must be at least 1 and at most max_len=8, got 9'
    ),
    'randomized_alibi(max_len=8, both_sides=2)': 'both_sides=2 is not bool',
    'randomized_alibi(max_len=8, bothsides=True)': (
        "no argument 'bothsides'; did you mean 'both_sides'"
    ),
    'randomized_alibi(max_len=8, draw=-1)': 'draw must be at least 0, got -1',
    'randomized_alibi(max_len=16777217)': 'max_len must be .* at most 16777216',
    'randomized_pe(max_len=0)': 'max_len must be at least 1, got 0',
    'randomized_pe(max_len=8, draw=-1)': 'draw must be at least 0, got -1',
    'randomized_pe(max_len=8, eval_len=9)': (
        'eval_len must be at least 1 and at most max_len=8, got 9'
    ),
    'randomized_pe(max_len=50000, evaluation="spaced")': (
        "needs max_len <= 46340, got 50000; use 'sampled'"
    ),
    'randomized_pe(max_len=8, evaluation="random")': 'one of .*sampled',
    'randomized_transformer_xl(max_len=0)': (
        'max_len must be at least 1 and at most 16777216, got 0'
    ),
    'randomized_transformer_xl(max_len=8, base=0.0)': 'base must be positive, got 0.0',
    'randomized_transformer_xl(max_len=8, std=-1.0)': 'std must be at least 0',
    'rcmha(max_len=0)': 'max_len must be at least 1, got 0',
    'rope(partial=0.0)': 'partial must be positive and at most 1, got 0.0',
    'rope(base=0.5)': 'base of rotary frequencies, must be at least 1, got 0.5',
    'rope(base=-1.0)': 'at least 1, got -1.0',
    'rope(layout="hlaf")': "one of 'half'",
    'rope(freqs=yarm(factor=4.0))': 'yarn',
    'rope(freqs=alibi())': 'not as frequencies',
    'rope_alibi_harmonic(weight=-0.5)': 'must be at least 0, got -0.5',
    'rope_alibi_harmonic(mode="head")': "'distance', 'heads', 'product'",
    'rope() | rope_alibi_harmonic()': 'both rotate queries and keys',
    'rpe_convergent(kernel="type3")': ("kernel='type3' is not one of .*; did you mean 'type[12]'"),
    'rpe_convergent(kernel="gaussian")': 'one of .*square',
    'rpe_convergent(slopes=(1.0, 2.0))': (
        r'slopes must be a tuple of heads=4 entries, got \(1.0, 2.0\)'
    ),
    'rpe_convergent(slopes=(1.0, 0.0, 1.0, 1.0))': 'slopes must be positive, got',
    'rpe_convergent(slopes=(1.0, -1.0, 1.0, 1.0))': 'slopes must be positive, got',
    'sandwich(dim=7)': 'at least 2, .* and even, got 7; the nearest is 8',
    'sandwich(dim=0)': 'at least 2, .* and even, got 0',
    'self_extend(encoding=rope(), group=0)': 'group=0',
    'self_extend(encoding=rope(), group=1e38)': 'below 2.*31 with floor=True, got group=1e',
    'self_extend(encoding=rope(), group=2.6)': 'group=2.6; the nearest is 3',
    'self_extend(encoding=rope(), group=None, floor=False)': 'finite group, got group=None',
    'self_extend(encoding=rope(), local=0)': 'local=0',
    'self_extend(encoding=rope(), local=65)': 'trained length of 64, got local=65',
    'self_extend(encoding=rope(), train_len=3)': r'at least 1, got 0 \(train_len=3\)',
    'self_extend(encoding=tape())': 'self_extend extends a rotary encoding, got tape',
    'seqpe(max_pos=1)': 'max_pos must be at least 2, got 1',
    'seqpe(components=0)': 'components must be at least 1, got 0',
    'seqpe(layers=0)': 'layers must be at least 1, got 0',
    'seqpe(candidates=1)': 'candidates must be at least 2, got 1',
    'seqpe(max_pos=1001, digits=3)': r'digits must lie in 4 \.\. 9 for max_pos=1001, got 3',
    'seqpe(digits=10)': r'digits must lie in 5 \.\. 9',
    'seqpe(max_pos=2000000000)': r'digits must lie in 10 \.\. 9 for max_pos=2000000000',
    'seqpe(temperature=0.0)': 'temperature must be positive',
    'seqpe(shift=1.5)': 'shift must be at least 0 and at most 1, got 1.5',
    'seqpe(dropout=1.0)': 'dropout must be at least 0 and at most 0.99',
    'seqpe(transfer=-1.0)': 'transfer must be at least 0',
    'seqpe(max_pos=15, train_len=12)': (
        'max_pos must be at least 16, so that a window of 12 positions has room'
    ),
    'seqpe(use="attn_sum")': "did you mean 'attn_",
    'randomized_pe(max_len=2048, eval_len=20) | seqpe(max_pos=1000)': (
        'randomized_pe draws positions 0 .. 2047, seqpe has 1000'
    ),
    'shaw(max_distance=-1)': 'max_distance must be at least 0, got -1',
    'shaw(std=-0.5)': 'std must be at least 0, got -0.5',
    'shaw() | shaw()': "shaw and shaw both need the exclusive door 'collect'",
    'sigma_gpt(max_len=1)': 'at least 2, got 1',
    'sigma_gpt(max_len=4, std=-1.0)': 'std must be at least 0',
    'sigma_gpt(max_len=4, table="sine")': 'is not one of',
    'sincos2d(style="deter")': "did you mean 'detr'|one of",
    'sincos2d(base=1.0)': 'base must be above 1',
    'sincos2d(rows=2, columns=2)': "style='detr' alone",
    'sincos2d(style="detr", rows=2)': 'must be integers of at least 1, got 2 and None',
    'sinusoidal(style="vasvani")': 'one of .*vaswani',
    'sinusoidal(base=1.0)': 'base must be above min_timescale = 1.0, got 1.0',
    'sinusoidal(style="t2t", min_timescale=0)': 'min_timescale must be positive, got 0',
    'sinusoidal(style="t2t", min_timescale=-1.0)': 'min_timescale must be positive, got -1',
    'sinusoidal(style="t2t", min_timescale=5.0, base=5.0)': (
        'base must be above min_timescale = 5.0, got 5.0'
    ),
    'sinusoidal(style="halves", min_timescale=2.0)': (
        "min_timescale is of style 't2t' alone, 'halves' has 1, got 2.0"
    ),
    'sinusoidal(style="t2t", min_timescales=2.0)': (
        "no argument 'min_timescales'; did you mean 'min_timescale'"
    ),
    'sinusoidal(padding_idx=-1)': 'padding_idx must be at least 0, got -1',
    'ssmax(gain=0.0)': 'gain must be positive, got 0.0',
    'ssmax(gain=-1.0)': 'gain must be positive, got -1.0',
    'ssmax() | full()': (
        'ssmax is defined for causal attention only, full lets queries see later keys'
    ),
    'fire() | ssmax(bidirectional=True)': (
        'fire is defined for causal attention only, ssmax lets queries see later keys'
    ),
    'string(encoding=rope(), shift=0)': 'shift=0',
    'string(encoding=rope(), train_len=2)': r'at least 1, got 0 \(train_len=2\)',
    'string(encoding=rope(), shift=4, local=5)': 'between 0 and shift=4, got 5',
    'string(encoding=rope(), attention_factor=0.0)': 'positive, got 0.0',
    't5_rpe(buckets=1)': 'at least 2 per direction, got 1',
    't5_rpe(buckets=2, bidirectional=True)': 'at least 2 per direction, got 1',
    't5_rpe(buckets=33, bidirectional=True)': 'even number of buckets, got 33',
    't5_rpe(max_distance=16)': 'must exceed the 16 exact distances of 32 buckets, got 16',
    't5_rpe(std=-0.1)': 'std must be at least 0, got -0.1',
    'tapa(theta=0.3)': (
        '2.4 features, expected a whole number from 1 to 7; the nearest theta is 0.25'
    ),
    'tapa(theta=0.01)': 'the nearest theta is 0.125',
    'tapa(theta=1.0)': 'theta must be positive and below 1, got 1.0',
    'tapa(alpha=0.0)': 'alpha must be positive, got 0.0',
    'tapa(phase=0.0)': 'phase must be positive, got 0.0',
    'tapa() | xpos()': 'tapa and xpos both need',
    'tape(scale=0.0)': 'scale must be positive, got 0.0',
    'tape(position_size=0)': 'position_size must be at least 1, got 0',
    'tape(post_attn="mean")': "post_attn='mean' is not one of 'gain', 'mix'",
    'rerope(encoding=alibi())': 'rerope extends a rotary encoding, got alibi',
    'rerope(encoding=rope(), local=0)': 'rerope local must be at least 1',
    'rerope(encoding=rope(), local=65)': 'rerope local must be .*at most train_len=64, got 65',
    'rerope(encoding=rope(), train_len=1)': 'rerope train_len, .* at least 2, got 1',
    'rope() | rerope()': 'write rerope.encoding=rope|extends another encoding',
    'streaming(encoding=sinusoidal())': 'streaming extends a rotary encoding or a relative bias',
    'swin_table(2, 2, window=True)': 'windows',
    'tape() | rope()': 'tape and rope both rotate queries and keys',
    'tape() | path()': 'tape carries a stream beside the values, and path rewrites cached',
    'tape() | toy_length()': ('tape reads a stream of every layer that no cache keeps, and toy'),
    'tape() | tape()': "tape and tape both need the exclusive door 'begin_stream'",
    'tra(threshold=-0.5)': 'threshold must be at least 0.*got -0.5',
    'transformer_xl(clamp_len=-1)': 'clamp_len must be at least 0.*got -1',
    'transformer_xl(base=0.0)': 'base must be positive, got 0.0',
    'transformer_xl(std=-0.1)': 'std must be at least 0, got -0.1',
    'randomized_pe(max_len=64) | tupe(max_len=9)': r'draws positions 0 \.\. 63, tupe has 9',
    'uni_encoder(shape="round")': "shape='round' is not one of 'arrow', 'diag', 'square'",
    'urpe(table="bucket")': "one of 'bucketed', 'toeplitz'",
    'urpe(buckets=1)': 'at least 2 per direction',
    'urpe(max_distance=16)': 'must exceed the 16 exact distances of 32 buckets, got 16',
    'urpe(table="toeplitz", max_len=-1)': 'max_len must be at least 0, got -1',
    'urpe(max_len=9)': "max_len=9 is an argument of table='toeplitz'",
    'urpe(table="toeplitz", max_distance=99)': (
        "max_distance=99 are arguments of table='bucketed'"
    ),
    'urpe(std=-1.0)': 'std must be at least 0, got -1.0',
    'v2pe(delta=0.0)': 'delta must be positive and at most 1, got 0.0',
    'v2pe(delta=1.5)': 'delta must be positive and at most 1, got 1.5',
    'v2pe(delta=-0.5)': 'delta must be positive and at most 1, got -0.5',
    'window(size=0)': 'window size must be at least 1, got 0',
    'xlpe(level="heads")': "did you mean 'head'",
    'xlpe(missing="none")': "missing='none' is not one of 'error'",
    'xlpe(tau=5)': 'must lie in 0 .. 4, the number of heads.* got 5',
    'xlpe(tau=1)': 'a multiple of the 2 heads that share a key, got 1',
    'xpos(gamma=0.0)': 'gamma=0.0',
    'xpos(scale_base=-1.0)': 'scale_base=-1.0',
}
REFUSED_SIZES = {  # spec, sizes of the model -> what the message says
    ('md_lrpe()', ('head_dim', 7)): 'in pairs',
    ('peg()', ('causal', True)): 'peg mixes later tokens into earlier ones, which causal',
    ('polyphase_anchor()', ('causal', True)): (
        'polyphase_anchor mixes later tokens into earlier ones'
    ),
    ('positional_description()', ('model_dim', 16)): 'and below model_dim=16, got 64',
    ('psc()', ('heads', None)): "psc needs 'heads'",
    ('rope()', ('head_dim', 7)): 'head_dim=7',
    ('rope(partial=0.5)', ('head_dim', 10)): '5 of head_dim=10',
    ('rope_alibi_harmonic()', ('head_dim', 7)): 'rope turns features in pairs: 7 of head_dim=7',
    ('seqpe(max_pos=1000)', ('model_dim', 10)): 'got 4 heads and width 10',
    ('sigma_gpt(max_len=4)', ('model_dim', 7)): 'model_dim must be even, got 7; the nearest is 8',
    ('tapa()', ('head_dim', 1)): 'head_dim must be at least 2, got 1',
    ('tape()', ('head_dim', 7)): 'a rotary width must be even and at least 2, got 7',
    ('transformer_xl()', ('model_dim', 7)): 'even model_dim, got 7',
}


@pytest.mark.parametrize('spec', REFUSED)
def test_wrong_values_are_refused(toys, spec):
    with pytest.raises(SpecError, match=REFUSED[spec]):
        pj.make(spec, **SIZES, rngs=nnx.Rngs(0))


@pytest.mark.parametrize('spec, size', REFUSED_SIZES, ids=str)
def test_sizes_that_do_not_fit_are_refused(spec, size):
    sizes = {**SIZES, size[0]: size[1]}
    given = {name: value for name, value in sizes.items() if value is not None}
    with pytest.raises(SpecError, match=REFUSED_SIZES[spec, size]):
        pj.make(spec, **given, rngs=nnx.Rngs(0))
