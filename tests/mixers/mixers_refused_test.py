"""What mixers refuse in spec strings and in calls, and what the message says."""

import functools
import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.tasks.rectangles import rectangles
from posenc_jax.mixers.box_features import box_features, centerness
from posenc_jax.mixers.box_pe import BoxLayer
from posenc_jax.mixers.cmc_pe import CrossModalConditioning, aligned
from posenc_jax.mixers.encoder_decoder import EncoderDecoder
from posenc_jax.mixers.gmu_hybrid import pattern_of
from posenc_jax.mixers.htr_attention import HTRAttention
from posenc_jax.mixers.monotonic_location import MonotonicLocation
from posenc_jax.mixers.set_prediction import Detector, assign
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens
from tests.mixers.small import OF_IMAGES, OF_POINTS, built, make, model_of

REFUSED = {  # spec -> what the message says
    'cheems(chunk=0)': 'cheems chunk must be at least 1, got 0',
    'cheems(base=0.5)': 'must be at least 1, got 0.5',
    'cheems(dt=0.0)': 'cheems dt must be positive',
    'gin(hidden=-1)': 'hidden must be at least 0, got -1',
    'gru(features=0)': 'gru features must be at least 1, got 0',
    'graph_attention(edges="masc")': "'masc' is not",
    'lavo(slots=64)': '1 .. 4 (head_dim), got 64',
    'lavo(slots=0)': 'got 0',
    'lavo(slots=2, window=0)': 'window must be at least 1',
    'lightnet(encoding=rope())': 'takes the encoding md_lrpe, not rope',
    'lightnet(encoding=md_lrpe() | alibi())': 'takes the encoding md_lrpe, not',
    'lightnet_whole(encoding=rope())': 'lightnet_whole takes the encoding md_lrpe, not rope',
    'lstm(features=0)': 'lstm features must be at least 1, got 0',
    'md_tpe(terms=0)': 'terms must be at least 1',
    'md_tpe(shape=(3, 0))': 'shape must be at least 1, got 0 in (3, 0)',
    'md_tpe(shape=(4096, 4096))': 'lines',
    'pcm_layer(pcm_layer(gru()))': 'takes a recurrent mixer such as gru',
    "pcm_layer(gmu_hybrid(part='keys'))": 'got gmu_hybrid',
    'pcm_layer(gru(), prompts=-1)': 'prompts must be at least 0',
    'pcm_layer(gru(), size=0.0)': 'size must be positive',
    'pcm_layer(gru(), order="xxx")': "order='xxx' is not",
    'pcm_layer(rope())': "'rope' is registered as encoding",
    'rope() | pcm_layer(gru())': 'replaces attention, so it stands alone',
    'pcm_layer(gru()) | pcm()': 'replaces attention, so it stands alone',
    'peg_causal(kernel=0)': 'kernel must be at least 1 and at most 1024, got 0',
    'peg_causal(kernel=1025)': 'kernel must be at least 1 and at most 1024, got 1025',
    'rmat(segment=-1)': 'segment must be at least 0',
    'rmat(chunk=0)': 'chunk must be at least 1',
    'rmat(slots=0)': 'slots must be at least 1',
    'rmat(base=0.5)': 'at least 1',
    "gmu_hybrid(part='gmu', scan=cheems())": "part='gmu' has no scan",
    'spatial_reduction()': "spatial_reduction needs 'rate'",
    'spatial_reduction(rate=0)': 'rate must be at least 1, got 0',
    'spatial_reduction(rate=1, anchor=True)': 'phases of a rate of at least 2, got rate=1',
}


@pytest.mark.parametrize('spec', REFUSED)
def test_wrong_values_are_refused(spec):
    with pytest.raises(SpecError, match=re.escape(REFUSED[spec])):
        make(spec)


def test_an_odd_head_width_cannot_be_rotated():
    for spec in ('rmat()', 'cheems()'):
        with pytest.raises(SpecError, match='even'):
            make(spec, head_dim=3)


def layer_on(spec, shape=(1, 9, 8), **tok):
    """A layer on tokens of these positions, documents or places on a grid."""
    return built(spec).whole(jnp.ones(shape), Tokens.of(**tok) if tok else Tokens.on_grid(3, 3))


def streams(a, b):
    return CrossModalConditioning(2, 3)(jnp.zeros(a), jnp.zeros(b))


located = functools.partial(MonotonicLocation, 8, 8, rngs=nnx.Rngs(0))
reading = functools.partial(HTRAttention, 8, 8, rngs=nnx.Rngs(0))
decoder = functools.partial(EncoderDecoder, 3, rngs=nnx.Rngs(0))
boxes = functools.partial(BoxLayer, 8, classes=2, rngs=nnx.Rngs(0))
part = "gmu_hybrid(part='{}')".format
CALLS = {  # what the message says -> the call
    # box_pe
    'boxes are (cx, cy, w, h), [..., 4], got (3,)': lambda: box_features(jnp.ones(3) / 2),
    'box 0 is not finite': lambda: box_features(jnp.array([0.5, np.nan, 0.5, 0.5])),
    'outside [0, 1]': lambda: box_features(jnp.array([0.5, 1.5, 0.5, 0.5])),
    'no width or no height': lambda: box_features(jnp.array([0.5, 0.5, 0.0, 0.5])),
    'even and at least 2, got 5': lambda: box_features(jnp.ones(4) / 2, 5),
    'at least one cell': lambda: centerness(0),
    'a divisor of width=8, got 3; the nearest is 2': lambda: boxes(heads=3),
    'box_pe cells must be at least 1': lambda: boxes(heads=2, cells=0),
    'at least one proposal and one step, got 0 and 4': lambda: Detector(
        classes=2, proposals=0, heads=2, rngs=nnx.Rngs(0)
    ),
    '1 predictions cannot stand for 2 objects': lambda: assign(
        np.zeros((1, 1, 2)), np.ones((1, 2), bool)
    ),
    'costs must be finite': lambda: assign(np.full((1, 2, 2), np.nan), np.ones((1, 2), bool)),
    'side must be at least 16, got 8': lambda: rectangles(np.random.default_rng(0), 1, side=8),
    # cheems and md_tpe
    'one position per token, got 2 components': lambda: layer_on(
        'cheems()', (1, 4, 8), positions=np.zeros((1, 4, 2), int)
    ),
    'shape=(2,) does not fit a grid of 3 x 3 tokens; use': lambda: layer_on('md_tpe(shape=(2,))'),
    # cmc_pe
    "did you mean 'linear'": lambda: CrossModalConditioning(2, 2, align='liner'),
    'width_b must be at least 1, got 0': lambda: CrossModalConditioning(2, 0),
    'length of at least 1, got 0': lambda: aligned(jnp.zeros((2, 2)), 0),
    'cmc_pe joins streams [B, T, 2] and [B, S, 3], got (1, 4, 3)': lambda: streams(
        (1, 4, 3), (1, 4, 3)
    ),
    'cmc_pe joins streams [B, T, 2] and [B, S, 3], got (1, 4, 2)': lambda: streams(
        (1, 4, 2), (2, 4, 3)
    ),
    # gmu_hybrid
    **{
        f'got {layers}; nearest: {nearest}': functools.partial(pattern_of, layers)
        for layers, nearest in ((5, 6), (2, 4), (0, 4), (-3, 4))
    },
    "cheems has no argument 'rotates'": lambda: pattern_of(8, scan='cheems(rotates=False)'),
    'gru does not tell its result before the gate': lambda: model_of(
        "gmu_hybrid(part='scan', scan=gru())", 'nope()'
    ),
    "part='keys') writes, and no layer below it in the pattern is one": lambda: model_of(
        part('scan'), part('cross')
    ),
    "part='scan') writes, and no layer below it in the pattern is one": lambda: model_of(
        part('gmu'), part('scan'), part('keys')
    ),
    "'scan', 'keys', 'cross', 'gmu'; did you mean 'keys'": lambda: model_of(part('key'), 'nope()'),
    # htr_attention
    "did you mean 'penalised'": lambda: reading(kind='penalized'),
    "did you mean 'sinusoid'": lambda: reading(positions='sinus'),
    'taps must be odd, so that a filter has a centre, got 4': lambda: reading(taps=4),
    'htr_attention width must be at least 1, got 0': lambda: reading(width=0),
    'noise must be at least 0, got -1.0': lambda: reading(noise=-1.0),
    'table of 4 positions, the source has 7 keys': lambda: reading(
        positions='table', max_len=4
    ).remember(jnp.zeros((1, 7, 8)), jnp.ones((1, 7), bool)),
    # monotonic_location and encoder_decoder
    'by location': lambda: located(location=None),
    "did you mean 'onestep'": lambda: located(location='onestp'),
    "did you mean 'relative'": lambda: located(content='relativ'),
    'needs location and content': lambda: located(position_past=True),
    'needs a location': lambda: located(location=None, content='plain', gru=True),
    'head_dim must be even, got 3': lambda: located(content='rotary', head_dim=3),
    'query_dim must be even, got 3': lambda: MonotonicLocation(
        3, 8, content='relative', rngs=nnx.Rngs(0)
    ),
    'hidden must be even': lambda: decoder(hidden=7),
    'at least 2, got 0': lambda: decoder(hidden=0),
    'rate of at least 0 and below 1, got': lambda: decoder(rate=1.0),
    # pcm_layer
    'packed documents': lambda: layer_on(
        'pcm_layer(gru())', positions=np.zeros((1, 9, 3)), segment=np.zeros((1, 9), int)
    ),
    'positions [B, L, 3], got (1, 9)': lambda: layer_on('pcm_layer(gru())', length=9),
    'pcm_layer sees the tokens on both sides': lambda: model_of('pcm_layer(gru())', **OF_POINTS),
    # spatial_reduction
    'does not divide a grid of 3 x 3 tokens; nearest grid: 4 x 4': lambda: layer_on(
        'spatial_reduction(rate=2)'
    ),
    'spatial_reduction reads a grid of tokens, and these lie': lambda: layer_on(
        'spatial_reduction(rate=2)', length=9
    ),
    'got tokens with padding or documents': lambda: built('spatial_reduction(rate=2)').whole(
        jnp.ones((1, 9, 8)),
        Tokens(**{**vars(Tokens.on_grid(2, 4, extra=1)), 'valid': jnp.ones((1, 9), bool)}),
    ),
    "use kind 'encoder'": lambda: model_of('spatial_reduction(rate=2)', **OF_IMAGES),
}


@pytest.mark.parametrize('message', CALLS)
def test_wrong_calls_are_refused(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        CALLS[message]()
