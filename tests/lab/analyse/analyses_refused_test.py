"""What analyses refuse, and what the message says."""

import functools
import re

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.analyse.attention_entropy import attention_entropy
from posenc_jax.lab.analyse.causal_mask_pattern import causal_mask_pattern
from posenc_jax.lab.analyse.collapse_and_oversquashing import collapse_and_oversquashing
from posenc_jax.lab.analyse.decay_kernel import decay_kernel, theoretical_field
from posenc_jax.lab.analyse.embedding_position_bias import embedding_position_bias, removed_at
from posenc_jax.lab.analyse.lm_eval import lm_eval, lm_eval_plot
from posenc_jax.lab.analyse.martingale_gap import martingale_gap
from posenc_jax.lab.analyse.nearby_similarity import adjacency_score, nearby_similarity
from posenc_jax.lab.analyse.nope_deep_lm import nope_deep_lm
from posenc_jax.lab.analyse.permutation_symmetry import permutation_symmetry
from posenc_jax.lab.analyse.pieces_entropy import entropy_of_pieces
from posenc_jax.lab.analyse.positional_neurons import position_information
from posenc_jax.lab.analyse.ppp_padding import Convolution, padding_pattern
from posenc_jax.lab.analyse.probe_position import probe_position
from posenc_jax.lab.analyse.receptive_field import receptive_field
from posenc_jax.lab.analyse.receptive_field_reports import Compared, rank_correlation
from posenc_jax.lab.analyse.rope_frequency_usage import rope_frequency_usage
from posenc_jax.lab.analyse.rope_usage import positional_head, rope_usage
from posenc_jax.lab.analyse.token_distance import positional_heads, token_distance, without_heads
from posenc_jax.lab.analyse.variance_shrinkage import variance_shrinkage
from posenc_jax.protocol.errors import SpecError
from tests.lab.analyse.by_hand import ids, model_of, same_model_of
from tests.lab.evaluate.scoring_test import Laplace

TOKENS = ids(2, 20)
ROWS = np.tile(np.asarray(TOKENS), (16, 1))
IMAGES = np.zeros((2, 7, 7, 4), np.float32)
STACK = [Convolution(np.ones((3, 3, 4, 4), np.float32))] * 3
TEXT, LENGTHS = np.arange(46) % 3, (4, 8, 16)
CAUSAL = 'defined for causal attention; this model lets queries see later tokens'
encoder = functools.partial(same_model_of, kind='encoder')


def on(analysis, *arguments, model=same_model_of, **options):
    """A call of an analysis with the small model."""
    return lambda: analysis(model(), *arguments, **options)


def of(encoding, analysis, *arguments, **options):
    """A call of an analysis with the small model, in which another encoding is used."""
    model = functools.partial(same_model_of, encoding=encoding)
    return on(analysis, *arguments, model=model, **options)


def field_of(encoding, *, size=2, **options):
    sizes = dict(heads=size, head_dim=8, model_dim=16, train_len=8)
    return lambda: theoretical_field(pj.make(encoding, **sizes), size, **options)


def model_of_zeros():
    model = model_of()
    model.embedding[...] = 0 * model.embedding[...]
    return model


squash = functools.partial(on, collapse_and_oversquashing, TOKENS)
flips = functools.partial(on, martingale_gap)
documents = functools.partial(on, embedding_position_bias, ROWS)
perplexities = lambda **given: lambda: lm_eval(Laplace(3), TEXT, **{'lengths': LENGTHS, **given})
patterns = lambda images, padding: lambda: padding_pattern(images, STACK, padding)
REFUSED = [  # a call, and what the message says
    (on(attention_entropy, TOKENS, block=0), 'block must be at least 1, got 0'),
    (on(attention_entropy, TOKENS + 1000), 'token ids lie in 0 .. '),
    (on(attention_entropy, TOKENS, rows=jnp.ones((1, 19), bool)), '(1, 19), tokens (2, 20)'),
    (on(attention_entropy, TOKENS, rows=jnp.zeros((1, 20), bool)), 'none of the 40 rows'),
    (on(entropy_of_pieces, TOKENS, pieces=9, query=10, sink=2), 'has 8 tokens for 9 pieces'),
    (of('alibi()', entropy_of_pieces, TOKENS, pieces=2, query=5), 'got alibi'),
    (on(causal_mask_pattern, ROWS[:, :1]), 'compares places, got 1 token'),
    (on(causal_mask_pattern, ROWS, model=encoder), CAUSAL),
    (on(causal_mask_pattern, np.zeros((1, 2049), np.int32)), 'at most 2048 tokens, got 2049'),
    (squash(counts=(0, 1)), 'ascend from at least 1, got [0, 1]'),
    (squash(counts=(2, 2)), 'ascend from at least 1'),
    (squash(pair=(1, 1)), 'two different ids in 0 .. 12, got (1, 1)'),
    (squash(pair=(0, 13)), 'two different ids in 0 .. 12'),
    (squash(probes=0), 'probes must be at least 1'),
    (squash(model=encoder), CAUSAL),
    (on(embedding_position_bias, ROWS[:1]), 'two documents'),
    (on(embedding_position_bias, ROWS[:1]), 'got 1 of 20 tokens in 8 segments'),
    (documents(segments=1), 'got 32 of 20 tokens in 1 segments'),
    (documents(segments=21), 'in 21 segments'),
    (documents(pool='first'), 'pool'),
    (on(embedding_position_bias, ROWS + 13), 'token ids lie in 0 .. 12'),
    (lambda: removed_at(np.arange(6), 2, 'ende'), "did you mean 'end'"),
    (perplexities(lengths=()), 'needs context lengths, e.g. lengths=(64, 128)'),
    (perplexities(lengths=(64,)), 'lengths up to 45'),
    (perplexities(stride=5), 'between 1 and the shortest length, 4'),
    (perplexities(tokens=0), 'tokens must be at least 1'),
    (perplexities(lengths=(1, 4)), 'use lengths of at least 2'),
    (lambda: lm_eval_plot([], 'none.png'), 'nothing to draw'),
    (flips((1, 1)), 'two different ids in 0 .. 12, got (1, 1)'),
    (flips((0, 13)), 'two different ids in 0 .. 12'),
    (flips((0, 1), separator=13), 'separator must be an id in 0 .. 12, got 13'),
    (flips((0, 1), counts=(4, 2)), 'ascend from at least 1, got [4, 2]'),
    (flips((0, 1), counts=()), 'ascend from at least 1'),
    (flips((0, 1), orders=1), 'orders must be at least 2, got 1'),
    (flips((0, 1), sequences=0), 'sequences must be at least 1, got 0'),
    (flips((0, 1), model=encoder), CAUSAL),
    (on(nearby_similarity, ROWS[:, :2]), 'takes 3 .. 512 tokens, got 2'),
    (lambda: adjacency_score(np.zeros((513, 513))), 'takes 3 .. 512 places, got 513'),
    (on(nope_deep_lm, ROWS[:, :2]), 'permutes the tokens before the last, got 2 tokens'),
    (on(nope_deep_lm, ROWS, orders=0), 'orders must be at least 1, got 0'),
    (on(permutation_symmetry, ROWS[:, :2]), 'tokens before the last, got 2 tokens'),
    (on(permutation_symmetry, ROWS, orders=0), 'orders must be at least 1, got 0'),
    (lambda: position_information(np.array([0.5, 1.5])), 'lie in 0 .. 1'),
    (patterns(IMAGES[:, :6], 'zeros'), '3 pixels of context around a crop, got 2 of 6 x 7'),
    (patterns(IMAGES[:1], 'zeros'), 'at least two images'),
    (lambda: Convolution(np.zeros((4, 4, 1, 1))), 'Convolution kernel must be odd, '),
    (lambda: Convolution(np.zeros((4, 4, 1, 1))), ' got 4, nearest: 3 or 5'),
    (lambda: Convolution(np.zeros((3, 5, 1, 1))), 'Convolution kernel must be square, got 3 x 5'),
    (on(probe_position, ROWS[:3]), 'four sequences of two tokens, got 3 of 20'),
    (on(probe_position, ROWS, penalty=0.0), 'penalty must be positive, got 0.0'),
    (on(probe_position, ROWS, probe='ridges'), "did you mean 'ridge'"),
    (on(probe_position, np.zeros((2**20, 20), np.int32)), 'would take '),
    (on(probe_position, np.zeros((2**20, 20), np.int32)), 'more than 4 GiB'),
    (on(probe_position, ROWS, batch=0), 'a batch of at least 1, got 32 and 0'),
    (field_of('rope()'), "rope opens 'project' as well"),
    (field_of('alibi() | sinusoidal()'), "sinusoidal opens 'embed'"),
    (field_of('urpe()'), "urpe opens 'collect'"),
    (field_of('randomized_pe(max_len=99) | alibi()'), "randomized_pe opens 'place'"),
    *[(field_of('alibi()', epsilon=x), f'in (0, 1), got {x}') for x in (0.0, 1.0, -0.1)],
    *[(on(receptive_field, TOKENS, epsilon=x), f'in (0, 1), got {x}') for x in (0.0, 1.0, -0.1)],
    (
        lambda: decay_kernel(pj.make('alibi()', heads=2), 2, 3),
        'at least 4 distances and 1 head, got 3 and 2',
    ),
    (on(receptive_field, TOKENS, block=0), 'block must be at least 1, got 0'),
    (of('alibi() | full()', receptive_field, TOKENS), CAUSAL),
    (
        lambda: rank_correlation([Compared('a', 6.0, 5.0), Compared('b', np.nan, 1.0)]),
        'needs two methods that have a TRF, got 1 of 2',
    ),
    (of('alibi()', rope_frequency_usage, ROWS), 'rope_frequency_usage needs '),
    (of('alibi()', rope_frequency_usage, ROWS), ' got alibi'),
    (on(rope_frequency_usage, ROWS, model=encoder), CAUSAL),
    (on(rope_frequency_usage, ROWS, block=0), 'block must be at least 1, got 0'),
    (of('alibi()', rope_usage, TOKENS), 'rope_usage needs '),
    (of('nope()', rope_usage, TOKENS), 'got 0 of them'),
    (
        lambda: rope_usage(same_model_of(pattern=('rope()', 'rope(partial=0.5)')), TOKENS),
        'layers have [2, 4]',
    ),
    (
        on(rope_usage, TOKENS, pj.Tokens.of(valid=np.zeros((2, 20), bool))),
        'all of these are padding',
    ),
    (lambda: positional_head(np.ones(32), -np.ones(32), 1), 'one weight >= 0'),
    (of('alibi()', token_distance, TOKENS), 'token_distance needs '),
    (of('rope() | full()', token_distance, TOKENS), CAUSAL),
    (on(token_distance, TOKENS, model=encoder), CAUSAL),
    (on(token_distance, TOKENS, tau=20), '0 .. 19 for 20 tokens, got 20'),
    (on(token_distance, TOKENS, block=0), 'at least 1, got 0'),
    (lambda: positional_heads(np.ones((1, 2)), 0), '(0, 1], got 0'),
    (on(without_heads, [(2, 0)]), 'no head (2, 0)'),
    (on(variance_shrinkage, ROWS[:, :1]), 'compares places, got 1 token'),
    (on(variance_shrinkage, 0 * ROWS, model=model_of_zeros), 'do not vary at some place'),
]


@pytest.mark.parametrize('call, message', REFUSED, ids=[message for _, message in REFUSED])
def test_wrong_input_is_refused(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    'call, message',
    [
        (perplexities(protocols=('slidin',)), "protocol is 'slidin'; did you mean 'sliding'"),
        (patterns(IMAGES, 'mirror'), "padding is 'mirror'"),
        (patterns(IMAGES, 'none'), "padding is 'none'"),
    ],
)
def test_a_wrong_choice_is_an_error_of_its_own(call, message):
    with pytest.raises(SpecError, match=message):
        call()


def test_fields_of_other_lengths_or_shares_are_not_merged():
    model = same_model_of(encoding='alibi()')
    one = receptive_field(model, TOKENS)
    for other in (receptive_field(model, TOKENS, epsilon=0.1), receptive_field(model, ROWS[:, :5])):
        with pytest.raises(ValueError, match='cannot be merged'):
            one.merge(other)
