"""What methods refuse in a spec string, and what the message says: those from `alibi` to
`lm_infinite`.
"""

import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.protocol.errors import SpecError

CONTEXT = dict(heads=4, kv_heads=2, head_dim=8, model_dim=16, train_len=64)
NOT_STATIC = 'do not depend on the current length'
LONGROPE = 'rope(freqs=longrope(long=(1.0, 2.0, 3.0, 4.0), start=2, factor=4.0))'
REFUSED = {  # spec -> a pattern of the message
    'alibi(slopes=(1.0, 0.25))': 'slopes must be a tuple of heads=4 entries, got',
    'alibi(slopes=(1.0, -0.25, 1.0, 1.0), learn_slopes=True)': 'slopes must be positive, '
    r'got -0.25 in \(1.0, -0.25, 1.0, 1.0\)',
    'alibi(heads=3, variant="half")': 'even number of heads, got 3',
    'alibi(variant="symetric")': "variant='symetric' is not one of 'symmetric'",
    'alibi_pi(factor=0.5)': 'at least 1, got 0.5',
    'alibi_pi()': 'needs a factor',
    'alibi_pi(factor=2.0, mode="dynamic")': 'takes its scale from the length, got factor=2.0',
    'alibi_pi(mode="dinamic")': "'static', 'dynamic', 'per_row'",
    'alibi_pi(factor=2.0, encoding=rope())': 'alibi_pi extends ALiBi, got rope',
    'alibi_pi(factor=2.0, train_len=0)': 'length in tokens, must be at least 1, got 0',
    'alibi_symmetric(variant="offset")': "no argument 'variant'",
    'alibi_symmetric(slopes=(1.0, 0.5))': 'alibi_symmetric slopes must be a tuple of heads=4 '
    'entries, got',
    'axial_rope2d(base=0.5)': 'at least 1',
    'axial_rope2d(scale=0.0)': 'scale must be positive',
    'axial_rope2d(layout="halve")': "did you mean 'half'|one of",
    'axial_rope2d(head_dim=6)': 'multiple of 4, got 6; the nearest is 8',
    'bam(beta=(1.0, 2.0))': 'beta must be a tuple of heads=4 entries, got',
    'bam(scale=(1.0, 2.0))': 'scale must be a tuple of heads=4 entries, got',
    'bam(loc=(1.0, 2.0, 3.0, 4.0, 5.0))': 'loc must be a tuple of heads=4 entries, got',
    'bam(scale=(1.0, 0.0, 1.0, 1.0))': r'scale must be positive, got 0.0 in \(1.0, 0.0, 1.0,',
    'bam(scale=(1.0, -2.0, 1.0, 1.0))': 'scale must be positive',
    'bam(fixed=("scale",))': "a fixed parameter of bam is 'scale'; did you mean 'logscale'",
    'bipe(separators=())': r'distinct token ids of at least 0, one or more, got \(',
    'bipe(separators=(-1,))': r'distinct token ids of at least 0, one or more, got \(-1',
    'bipe(separators=(3, 3))': r'distinct token ids of at least 0, one or more, got \(3',
    'bipe(train_len=0)': 'train_len must be at least 1, got 0',
    'cable(scale=0.0)': 'positive.*got 0.0',
    'cable(scale=-1.0)': 'positive.*got -1.0',
    'cable(std=-1.0)': 'std must be at least 0, got -1.0',
    'cable() | full()': 'cable is defined for causal attention only, full lets',
    'carope(head_dim=7)': 'a rotary width must be even and at least 2, got 7',
    'carope(base=1.0)': 'base must be above 1, got 1.0',
    'carope(layout="halves")': "layout='halves' is not one of 'half', 'interleaved'",
    'conflator(base=0.0)': 'base of rotary frequencies, must be at least 1, got 0.0',
    'conflator(layout="halves")': "layout='halves' is not one of 'half', 'interleaved'",
    'conflator(mode="restart")': "mode='restart' is not one of 'shift', 'reset'",
    'conflator(head_dim=5)': 'must be even and at least 2, got 5',
    'conflator() | conflator()': "conflator and conflator both need the exclusive door 'qkv'",
    'conflator() | alibi()': 'conflator gives every head several inputs of attention, and alibi '
    'has parameters per head',
    'path(rank=2) | conflator()': 'several inputs of attention, and path has parameters per head',
    'cope(npos=0)': 'npos',
    'cope(gates="values")': 'one of',
    'cope(npos=2.5)': 'int',
    'cope_complex("hybrid_norm")': "one of 'magnitude', 'phase', 'real', 'hybrid', 'apatt', "
    "'riatt'",
    'cope_complex("riatt", merge="concat")': "'riatt'. sums the real part only: merge='real'",
    'cope_complex(position="learned", max_len=0)': 'max_len must be at least 1, got 0',
    'cope_complex(model_dim=7)': 'so model_dim is even, got 7',
    'cope_complex() | alibi()': 'cope_complex gives every head several inputs',
    'cope_complex("apatt") | rope()': 'write rope before it',
    'cream(factor=0)': 'cream factor must be an integer of at least 1, got 0',
    'cream(factor=1, train_len=0)': 'cream train_len, .* got 0',
    'cream(factor=2, train_len=32) | learned_absolute(max_len=63)': 'cream draws positions '
    '0 .. 63, learned_absolute has 63; use a larger table',
    'dca(encoding=alibi())': 'rotary encoding, got alibi',
    'dca(encoding=rope() | alibi())': 'chain other encodings beside it',
    'dca(encoding=rope(freqs=dynamic_ntk()))': NOT_STATIC,
    f'dca(encoding={LONGROPE})': 'use start=0',
    'dca(encoding=rope(), local=100)': 'got chunk=-52 .*chunk=None, local=100, train_len=64',
    'dca(encoding=rope(), chunk=0)': 'chunk=0',
    'dca(encoding=rope(), chunk=2.5)': 'chunk=2.5',
    'dca(encoding=rope(), chunk=4, local=5)': 'between 0 and chunk=4, got 5',
    'dca()': 'extends another encoding',
    'dpe(layers=0)': 'layers must be at least 1, got 0',
    'dpe(lam=0.0)': 'lam must be positive and at most 1, got 0.0',
    'dpe(lam=1.5)': 'lam must be positive and at most 1, got 1.5',
    'fire(width=0)': 'width must be at least 1, got 0',
    'fire(threshold=0)': 'threshold must be positive, got 0.0',
    'fox(t_min=2.0, t_max=4.0)': "gate='full' starts at gate_bias",
    'fox("fixed")': 'needs the horizons of the first and the last head.*t_min=None',
    'fox("fixed", t_min=8.0, t_max=4.0)': 't_min <= t_max',
    'fox("bias_only", t_min=2.0, t_max=4.0, gate_bias=1.0)': 'leave out gate_bias=1.0',
    'fox("fixed", t_min=0.001, t_max=4.0)': 'fox t_min.* must be at least 0.1, got 0.001',
    'fox(prune=1.0)': 'prune must be .*below 0.*got 1.0',
    'fox("ful")': 'full',
    'fox(prune=-10.0) | alibi()': 'fox leaves out keys by a bound of its own logits',
    'fox(prune=-10.0) | rope()': 'write rope before it',
    'gali(encoding=alibi())': 'rotary encoding, got alibi',
    'gali(encoding=rope(freqs=dynamic_ntk()))': NOT_STATIC,
    f'gali(encoding={LONGROPE})': 'use start=0',
    'gali(encoding=rope(), local=64)': 'between 0 and train_len - 1 = 63, got 64; the nearest is '
    '63',
    'gali(encoding=rope(), local=-1)': 'between 0 and train_len - 1 = 63, got -1; the nearest is 0',
    'gali(encoding=rope(), train_len=0)': 'needs train_len, .* got 0',
    'gali(encoding=rope(), chunk=0)': 'chunk=0 with train_len=64',
    'gali(encoding=rope(), chunk=0.01)': 'chunk=0.01 with train_len=64',
    'gali(encoding=rope(), chunk=2.6)': 'fraction below 1, got 2.6; the nearest is 3',
    'gali(encoding=rope(), noise=-1.0)': 'at least 0, got -1.0',
    'gali()': 'extends another encoding',
    'gpe(k=0)': 'k must be at least 1, got 0',
    'gpe(k=1, phi=-1)': 'phi must be at least 0, got -1',
    'gpe(k=1, source=0)': 'source must be at least 1, got 0',
    'hirope(encoding=alibi())': 'rotary encoding, got alibi',
    'hirope(encoding=rope(freqs=dynamic_ntk()))': NOT_STATIC,
    'hirope(encoding=rope(), window=-1)': 'at least 0, got -1',
    'hirope(encoding=rope(), split=5)': 'between 0 and the 4 planes of the encoding, got 5',
    'hirope(encoding=rope(), split=-1)': 'got -1',
    'hirope(encoding=rope(), level="relative")': 'level',
    'hirope()': 'extends another encoding',
    'image_shift(sizes=())': 'heights and widths of one or more images',
    'image_shift(sizes=((0, 2),))': 'sizes must be at least 1, got',
    'image_shift(sizes=((1, 2), (3, -1)))': 'sizes must be at least 1, got',
    'irope(size=0)': 'irope size must be at least 1, got 0',
    'irpe(mode="biased")': "did you mean 'bias'|one of",
    'irpe(method="products")': "did you mean 'product'|one of",
    'irpe(on="vk")': 'one of',
    'irpe(mode="bias", on="v")': "'bias' has one table",
    'irpe(ratio=0.4)': 'ratio must be at least 0.5',
    'irpe(ratio=65.0)': 'ratio must be at most 64',
    'kernelized_rpe(features=0)': 'features must be at least 1, got 0',
    'kernelized_rpe(max_distance=-1)': 'max_distance must be at least 0, got -1',
    'kernelized_rpe(fft_from=0)': 'fft_from must be at least 1, got 0',
    'kernelized_rpe() | tapa()': 'kernelized_rpe and tapa both need',
    'kerple(kernel="logarithm")': 'one of .*log3',
    'kerple(kernel="weigth")': "kernel='weigth' is not one of .*; did you mean 'weight'",
    'kerple(kind="weigth")': "'kernel'",
    'kerple(kernel="log", fixed=("r1",))': "fixed parameter of kerple 'log' is 'r1'",
    'kerple(kernel="weight", fixed=("p",))': "fixed parameter of kerple 'weight' is 'p'",
    'leaky_rerope(encoding=rope(freqs=dynamic_ntk()))': f'leaky_rerope needs .* {NOT_STATIC}',
    'leaky_rerope(encoding=rope(), factor=0.5)': 'leaky_rerope factor, .* at least 1, got 0.5',
    'learnable_fourier(components=0)': 'components must be at least 1, got 0',
    'learnable_fourier(groups=0)': 'groups must be at least 1, .*, got 0',
    'learnable_fourier(hidden=0)': 'hidden must be at least 1, got 0',
    'learnable_fourier(components=3, groups=2)': 'groups must be .* a divisor of components=3 .*, '
    'got 2',
    'learnable_fourier(components=4, groups=4, model_dim=6)': 'a divisor of model_dim=6, got 4; '
    'the nearest is 3',
    'learnable_fourier(features=7)': 'features must be at least 2 and even, got 7; the nearest is '
    '8',
    'learnable_fourier(features=0)': 'features must be at least 2 and even, got 0',
    'learnable_fourier(gamma=0.0)': 'gamma must be positive, got 0.0',
    'learned_absolute(max_len=0)': 'max_len must be at least 1, got 0',
    'learned_absolute(max_len=4, std=-1.0)': 'std must be at least 0, got -1.0',
    'learned_absolute(max_len=4, overflow="wrap")': 'one of .*clamp',
    'learned_grid(0, 5)': 'rows must be at least 1, got 0',
    'learned_grid(3, 5, size=(3, 0))': 'size must be at least 1, got 0 in .3, 0.',
    'learned_grid(3, 5, extra=-1)': 'extra must be at least 0',
    'learned_grid(3, 5, std=-1.0)': 'std must be at least 0',
    'lm_infinite(encoding=alibi(variant="half"))': 'lm_infinite extends a rotary encoding or a '
    'relative bias such as .*, got alibi',
    'lm_infinite(encoding=nope())': 'relative bias such as alibi.*got nope',
    'lm_infinite(encoding=rope(freqs=dynamic_ntk()))': NOT_STATIC,
    'lm_infinite(encoding=rope(), n_local=0)': 'n_local=0',
    'lm_infinite(encoding=rope(), n_global=-1)': 'n_global=-1',
    'lm_infinite(encoding=rope(), top_k=-1)': 'at least 0, got -1',
    'lm_infinite(encoding=rope(), top_k=2, distance=0)': 'distance must be at least 1, got 0',
    'lm_infinite(encoding=rope(), distance=7)': 'distance=7, top_k=0',
    'lm_infinite(encoding=alibi(), top_k=2)': 'top_k=2 needs a rotary encoding, got alibi; use '
    'top_k=0',
    'lm_infinite()': 'extends another encoding',
    'log_length("log")': "kind='log' is not one of 'logn', 'llama4'|did you mean 'logn'",
    'log_length(step=64)': "step belongs to the kind 'llama4', got step=64 with kind='logn'",
    'log_length(slope=0.1)': "slope belongs to the kind 'llama4', got slope=0.1",
    'log_length("llama4", slope=-0.1)': 'log_length slope must be at least 0, got -0.1',
    'log_length("llama4", step=0)': 'log_length step must be at least 1, got 0',
    'log_length(train_len=1)': 'train_len must be at least 2, got 1',
}
HIDDEN_BY_CAUSAL = {  # spec -> a pattern of the message in a decoder
    'alibi(variant="half")': 'alibi has heads that look at later keys only, which causal hides',
    'alibi_pi(factor=2.0, encoding=alibi(variant="half"))': 'alibi_pi has heads that look at '
    'later keys only, which causal hides',
    'dpe()': 'dpe .* causal hides: use it in an encoder, or with full',
}


@pytest.mark.parametrize('spec', REFUSED)
def test_wrong_values_are_refused(spec):
    """The sizes are those of a model, except those that the spec string gives."""
    sizes = {name: size for name, size in CONTEXT.items() if f'{name}=' not in spec}
    with pytest.raises(SpecError, match=REFUSED[spec]):
        pj.make(spec, rngs=nnx.Rngs(0), **sizes)


@pytest.mark.parametrize('spec', HIDDEN_BY_CAUSAL)
def test_what_sees_later_keys_only_is_refused_in_a_decoder(spec):
    with pytest.raises(SpecError, match=HIDDEN_BY_CAUSAL[spec]):
        pj.make(spec, causal=True, rngs=nnx.Rngs(0), **CONTEXT)
