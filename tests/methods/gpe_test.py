"""Group position encoding: the sheet's rows, streaming as the masked full pass, padding, packing,
limits.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.gpe import gpe_loss, gpe_wait_k_reads
from tests.golden_files import golden, golden_suite
from tests.methods.models import decoded, model_of, read, text
from tests.methods.pairs import draw
from tests.refusals import refused

GOLDEN = golden('gpe')['values']
SOURCE, TARGET = GOLDEN['source_words'], GOLDEN['target_words']
N, M = sum(SOURCE), sum(TARGET)


def labels(source, target):
    """Groups and segments [n + m, 2] of source then target from their words' token counts."""
    words = [(g, s, size) for g, part in enumerate((source, target)) for s, size in enumerate(part)]
    return np.array([(g, s) for g, s, size in words for _ in range(size)])


LABELS = labels(SOURCE, TARGET)


def placed(spec, positions, **known):
    return pj.make(spec).place(pj.Tokens.of(positions=positions[None], **known))


masked = jax.jit(lambda part, tok: part.mask(tok, tok))


def mask(spec, positions, **known):
    tok = placed(spec, positions, **known)
    return np.asarray(masked(pj.make(spec), tok))[0, 0].astype(int)


def by_hand(source, target, k):
    """The mask [n + m, n + m] word by word: what each target row reads, then the rows of the source
    part moved up by one.
    """
    n, m = sum(source), sum(target)
    reads = [
        sum(source[: min(k + g, len(source))]) for g, size in enumerate(target) for _ in range(size)
    ]
    full = np.tril(np.ones((n + m, n + m), int))
    for row, count in enumerate(reads[1:] + reads[-1:]):
        full[n + row, count:n] = 0
    return full


test_golden = golden_suite('gpe') | {
    'source_ids': lambda: placed('gpe(k=1)', LABELS).pos[0, :N],
    'target_ids': lambda: placed('gpe(k=1)', LABELS).pos[0, N:],
    'after_the_shift': lambda: mask('gpe(k=1)', LABELS)[N:, :N].sum(1),
}


def test_the_shift_by_one():
    words, k = LABELS[N:, 1], GOLDEN['k']
    before = [sum(SOURCE[: k + g]) for g in words]
    assert before == GOLDEN['before_the_shift']
    assert before[1:] + before[-1:] == GOLDEN['after_the_shift']
    reads = gpe_wait_k_reads(*(jnp.asarray(LABELS[None, :, c]) for c in (0, 1)), k)[0, N:]
    assert reads.tolist() == [GOLDEN['readable_segments'][g] for g in (*words[1:], words[-1])]


@pytest.mark.full_but_one
@pytest.mark.parametrize('k', [1, 2, 3, 7])
@pytest.mark.parametrize(
    'words', [(SOURCE, TARGET), ([1, 1, 1, 1, 1, 1], [2, 1, 1, 3]), ([4], [1, 1]), ([1, 2], [5])]
)
def test_the_mask_word_by_word(words, k):
    np.testing.assert_array_equal(mask(f'gpe(k={k})', labels(*words)), by_hand(*words, k))


def test_a_large_k_sees_the_full_source():
    expected = np.tril(np.ones((N + M, N + M), int))
    np.testing.assert_array_equal(mask('gpe(k=99)', LABELS), expected)


def test_phi_starts_the_target():
    assert placed('gpe(k=1, phi=30)', LABELS).pos[0, N:].tolist() == [30, 31, 32, 33]
    # The batch layout.
    assert placed(f'gpe(k=1, phi={N})', LABELS).pos[0].tolist() == list(range(N + M))


def test_a_source_of_one_length_is_words_of_one_token():
    n, m, encoding = 5, 4, pj.make('gpe(k=2, source=5)')
    tok = encoding.place(pj.Tokens.of(length=n + m))
    # One row more: the last one's view is the next one's.
    words = labels([1] * n, [1] * m + [1])
    np.testing.assert_array_equal(tok.pos[0], placed('gpe(k=2)', words).pos[0, :-1])
    np.testing.assert_array_equal(masked(encoding, tok)[0, 0], mask('gpe(k=2)', words)[:-1, :-1])
    other = encoding.place(pj.Tokens.of(positions=[[3] * 9]))
    np.testing.assert_array_equal(other.pos, tok.pos)


def arrival(k):
    """The order in which tokens are fed in: before a target row, all the source it sees; then what
    is left of the source.
    """
    seen, order = by_hand(SOURCE, TARGET, k), []
    for row in range(N, N + M):
        order += [j for j in range(N) if seen[row, j] and j not in order] + [row]
    return order + [j for j in range(N) if j not in order]


@pytest.mark.parametrize('k', [1, 2])
def test_ids_and_views_are_the_same_in_order_of_arrival(k):
    order, spec = arrival(k), f'gpe(k={k}, phi=3)'
    assert order != list(range(N + M))
    together, streamed = (placed(spec, positions).pos[0] for positions in (LABELS, LABELS[order]))
    np.testing.assert_array_equal(streamed, together[jnp.array(order)])
    views = mask(spec, LABELS)[np.ix_(order, order)]
    np.testing.assert_array_equal(mask(spec, LABELS[order]), views)


def test_a_token_that_has_not_arrived_is_not_seen():
    """The first target row is fed in before the source word that it may see."""
    order = [0, 1, 7, 2, 3, 4, 5, 6, 8, 9, 10]
    assert mask('gpe(k=1)', LABELS[order])[2].tolist() == [1, 1, 1] + [0] * 8


@pytest.mark.full_but_one
@pytest.mark.parametrize('k', [1, 2])
def test_reading_and_writing_equals_the_masked_full_pass(k):
    model, order, words = model_of(f'gpe(k={k}) | rope()'), np.array(arrival(k)), text(2, N + M)
    tokens = lambda positions: pj.Tokens.of(positions=positions[None])
    full = np.asarray(read(model, words, tokens(LABELS)))
    streamed = decoded(model, words[:, order], 2, tokens(LABELS[order]))
    np.testing.assert_allclose(streamed, full[:, order], atol=1e-5)
    assert np.abs(full - read(model, words, tokens(labels(SOURCE, [M])))).max() > 1e-2


def test_padding_on_either_side_changes_nothing():
    alone, allowed = placed('gpe(k=1)', LABELS), mask('gpe(k=1)', LABELS)
    filler = np.array([[1, 5], [0, 9], [7, -7]])  # what stands in padding does not matter
    for parts, start in (((filler, LABELS), 3), ((LABELS, filler), 0)):
        positions, real = np.concatenate(parts), slice(start, start + N + M)
        valid = np.zeros((1, len(positions)), bool)
        valid[:, real] = True
        padded = placed('gpe(k=1)', positions, valid=valid)
        np.testing.assert_array_equal(padded.pos[0, real], alone.pos[0])
        found = mask('gpe(k=1)', positions, valid=valid)[real, real]
        np.testing.assert_array_equal(found, allowed)


def test_packed_documents_are_placed_apart():
    other = labels([1, 1, 2], [2, 2])
    both = np.concatenate([LABELS, other])
    segment = [[0] * len(LABELS) + [1] * len(other)]
    packed, views = (f('gpe(k=1)', both, segment=segment) for f in (placed, mask))
    for part, rows in ((LABELS, slice(0, len(LABELS))), (other, slice(len(LABELS), None))):
        np.testing.assert_array_equal(packed.pos[0, rows], placed('gpe(k=1)', part).pos[0])
        np.testing.assert_array_equal(views[rows, rows], mask('gpe(k=1)', part))


def test_rows_may_share_positions_and_differ_in_padding():
    valid = jnp.ones((2, N + M), bool).at[1, -1].set(False)
    tok = dataclasses.replace(pj.Tokens.of(positions=LABELS[None]), valid=valid)
    both = pj.make('gpe(k=1)').place(tok)
    assert both.pos.shape == (2, N + M) and both.feats['gpe']['reads'].shape == (2, N + M, 1)
    # The last target token of the second row keeps its own number.
    assert both.feats['gpe']['reads'][:, -2, 0].tolist() == [3, 2]


@pytest.mark.full
def test_the_loss_pairs_the_first_target_token_with_the_row_after_the_source_prompt():
    """The sheet: array index src[0] for the first, the target row before it for the others;
    documents apart, padding left out.
    """
    batch = np.concatenate([LABELS, LABELS, [[-1, 0]]])
    document = np.repeat([0, 1, 2], [N + M, N + M, 1])
    rows = [start + row for start in (0, N + M) for row in (SOURCE[0], *range(N, N + M - 1))]
    targets = [start + row for start in (0, N + M) for row in range(N, N + M)]
    tokens = np.random.default_rng(0).integers(0, 7, (1, len(batch)))
    known = tokens, batch[None, :, 0], batch[None, :, 1], document[None]
    found, gradient = jax.value_and_grad(gpe_loss)(logits := draw(0, 1, len(batch), 7), *known)
    log_p = logits[0] - np.log(np.exp(logits[0]).sum(-1, keepdims=True))
    of_pairs = [log_p[row, tokens[0, target]] for row, target in zip(rows, targets)]
    assert found == pytest.approx(-np.mean(of_pairs), rel=1e-5)
    assert np.flatnonzero(np.abs(gradient[0]).max(-1)).tolist() == sorted(rows)


def place(positions, spec='gpe(k=1)'):
    return lambda: pj.make(spec).place(pj.Tokens.of(positions=positions))


test_wrong_calls = refused() | {
    r'integers \[B, L, 2\], group and segment, or `source` .* got int32 \(1, 2\)': place([[0, 1]]),
    r'got float32 \(1, 1, 2\)': place([[[0.0, 1.0]]]),
    r'gpe\(source=3\) takes positions \[B, L\], got \(1, 1, 2\)': place(
        [[[0, 1]]], 'gpe(k=1, source=3)'
    ),
    'group 2; 0 is the source and 1 the target': place([[[0, 1], [2, 0]]]),
    'segment -1; segments of a group count from 0': place([[[0, -1]]]),
}
