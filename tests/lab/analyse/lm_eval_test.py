"""Perplexity at longer lengths: the protocols against loops over tokens that follow their words,
with a model whose likelihoods are known.
"""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from posenc_jax.lab.analyse import lm_eval as module
from posenc_jax.lab.analyse.lm_eval import lm_eval, lm_eval_plot
from posenc_jax.lab.config import protocols
from posenc_jax.lab.evaluate.measurement import perplexity
from tests.golden_files import golden_suite
from tests.lab.evaluate.scoring_test import Laplace, laplace_nll

TEXT = np.random.default_rng(0).integers(0, 3, 46)
LENGTHS = (4, 8, 16)


def spans(plan):
    return [
        [int(start), int(start + size), int(scored)]
        for start, size, scored in zip(plan.start, plan.size, plan.scored)
    ]


def measured_by_hand(around):
    """Losses of 1, 3, 1 and 1 bits: perplexity 2 ** 1.5, and 6 bits on 8 bytes."""
    nll = np.array([around['nll']])
    return perplexity('sliding', 4, nll, nll > 1, nll > 0, bytes_scored=8)


test_golden = golden_suite(
    'lm_eval',
    {
        'sliding_4_2': lambda: spans(protocols.sliding(10, 4, 2)),
        'sliding_4_4': lambda: spans(protocols.sliding(10, 4, 4)),
        # A block [b, e) of tokens reads and predicts one token less than it has.
        'blocks_4': lambda: [[b, e + 1, n] for b, e, n in spans(protocols.within_blocks(9, 4))],
        'perplexity': (lambda around: measured_by_hand(around).value, {'rtol': 1e-12}),
        'bits_per_byte': (lambda around: measured_by_hand(around).bits_per_byte, {'rtol': 1e-12}),
    },
)


def test_windows_that_do_not_overlap_slide_by_their_length():
    assert spans(protocols.nonoverlapping(10, 4)) == spans(protocols.sliding(10, 4, 4))
    for tokens in range(9, 30):
        for length in (2, 3, 5, 8):
            plan = protocols.within_blocks(tokens - 1, length)
            assert plan.scored.sum() == tokens - math.ceil(tokens / length)


def contexts(protocol, length, stride):
    """(first token of the context, scored token) for every scored token."""
    pairs = []
    for token in range(1, len(TEXT)):
        if protocol == 'nonoverlapping':  # inputs are shifted by one across the edge of a block
            pairs.append(((token - 1) // length * length, token))
        elif protocol == 'within_blocks':
            pairs += [(token // length * length, token)] * (token % length > 0)
        else:
            starts = [b for b in range(0, len(TEXT), stride) if b < token <= b + length]
            pairs.append((min(starts), token))
    return pairs


def mean(pairs):
    return np.mean([laplace_nll(TEXT[b:t], TEXT[t], 3) for b, t in pairs])


@pytest.fixture(scope='module', params=[2**14, 20], ids=['all windows at once', 'in batches'])
def measured(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, '_AT_ONCE', request.param)
        found = lm_eval(Laplace(3), TEXT, LENGTHS, tokens=100, stride=2, buckets=2, bytes_of=BYTES)
    return {(m.protocol, m.length, m.position_low): m for m in found}


BYTES = np.array([1, 2, 5])


@pytest.mark.parametrize('length', LENGTHS)
@pytest.mark.parametrize('protocol', ['nonoverlapping', 'within_blocks', 'sliding'])
def test_protocols_equal_a_loop_over_tokens(measured, protocol, length):
    found, pairs = measured[protocol, length, None], contexts(protocol, length, 2)
    assert found.tokens == len(pairs)
    assert found.nll == pytest.approx(mean(pairs), rel=1e-5)
    assert found.value == pytest.approx(math.exp(mean(pairs)), rel=1e-5)
    count = sum(BYTES[TEXT[t]] for _, t in pairs)
    assert found.bits_per_byte == pytest.approx(
        mean(pairs) * len(pairs) / (math.log(2) * count), rel=1e-5
    )


def test_same_tokens_are_scored_with_every_context(measured):
    # 45 targets have room for 15 blocks of 2 behind a context of 16; all are read.
    ends = [16 + 2 * block for block in range(15)]
    for length in LENGTHS:
        found = measured['same_tokens', length, None]
        pairs = [(end - length, t) for end in ends for t in (end - 1, end)]
        assert found.tokens == 30 and found.nll == pytest.approx(mean(pairs), rel=1e-5)


def test_positions_are_those_of_windows_of_the_longest_length(measured):
    buckets = [key[2] for key in measured if key[0] == 'per_position']
    assert buckets == [0, 11]
    for low, high in ((0, 11), (11, 16)):
        pairs = [p for p in contexts('nonoverlapping', 16, 2) if low <= (p[1] - 1) % 16 < high]
        found = measured['per_position', 16, low]
        assert (found.position_high, found.tokens) == (high, len(pairs))
        assert found.nll == pytest.approx(mean(pairs), rel=1e-5)


def test_a_stride_of_one_gives_every_token_the_whole_context():
    (found,) = lm_eval(Laplace(3), TEXT, (6,), ('sliding',), tokens=45, stride=1)
    pairs = [(max(0, t - 6), t) for t in range(1, len(TEXT))]
    assert found.nll == pytest.approx(mean(pairs[: found.tokens]), rel=1e-5)
    assert found.tokens == 6 + (4 * 45 // 6 - 1)  # the windows that read at most 4 x 45 tokens


class Young(Laplace):
    """Predicts better from its second token on, and gains nothing from more context."""

    def hidden(self, tokens, tok=None, *, key=None):
        rank = jnp.arange(tokens.shape[1])[None, :, None]
        scale = jnp.where(rank == 0, 1.0, 3.0)
        return scale * jnp.asarray([2.0, 0.0, 0.0]) * jnp.ones((*tokens.shape, 1))


def test_only_the_early_tokens_gain_where_context_does_not_help():
    """The early token curse: longer windows look better, but not on the same tokens."""
    found = lm_eval(Young(3), np.zeros(70, np.int64), (4, 32), tokens=64, stride=2)
    value = {(m.protocol, m.length): m.value for m in found if m.position_low is None}
    assert value['nonoverlapping', 4] > value['nonoverlapping', 32] + 0.02
    assert value['same_tokens', 4] == pytest.approx(value['same_tokens', 32], rel=1e-6)


@pytest.mark.full
def test_the_picture(tmp_path, measured):
    path = lm_eval_plot(list(measured.values()), tmp_path / 'a.png', train_length=8)
    assert path.stat().st_size > 10_000
    only = [m for m in measured.values() if m.protocol == 'per_position']
    assert lm_eval_plot(only, tmp_path / 'b.png').stat().st_size < path.stat().st_size
