"""Group position encoding: the sheet's rows, streaming as the masked full pass, padding, packing,
limits.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.model import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.gpe import gpe_ids, gpe_loss, wait_k_reads
from tests.golden_files import golden

GOLDEN = golden('gpe')['values']
SOURCE, TARGET = GOLDEN['source_words'], GOLDEN['target_words']
N, M = sum(SOURCE), sum(TARGET)


def labels(source, target):
    """Groups and segments [n + m, 2] of source then target from their words' token counts."""
    return np.array(
        [
            (g, s)
            for g, words in enumerate((source, target))
            for s, size in enumerate(words)
            for _ in range(size)
        ]
    )


LABELS = labels(SOURCE, TARGET)


def placed(spec, positions, **known):
    return pj.make(spec).place(pj.Tokens.of(positions=positions[None], **known))


masked = jax.jit(lambda part, tok: part.mask(tok, tok))


def mask(spec, tok):
    return np.asarray(masked(pj.make(spec), tok))[0, 0].astype(int)


def by_hand(source, target, k):
    """The mask [n + m, n + m] word by word: what each target row reads, then the rows of the source
    part moved up by one.
    """
    n, m = sum(source), sum(target)
    reads = [
        sum(source[: min(k + g, len(source))]) for g, size in enumerate(target) for _ in range(size)
    ]
    reads = reads[1:] + reads[-1:]
    full = np.tril(np.ones((n + m, n + m), int))
    for row, count in enumerate(reads):
        full[n + row, count:n] = 0
    return full


def test_golden_ids_and_rows():
    tok = placed(f'gpe(k={GOLDEN["k"]})', LABELS)
    assert tok.pos[0].tolist() == GOLDEN['source_ids'] + GOLDEN['target_ids']
    allowed = mask('gpe(k=1)', tok)
    assert allowed[N:, :N].sum(1).tolist() == GOLDEN['after_the_shift']
    np.testing.assert_array_equal(allowed, by_hand(SOURCE, TARGET, 1))
    np.testing.assert_array_equal(allowed[:N, :N], np.tril(np.ones((N, N), int)))
    assert not allowed[:N, N:].any()


def test_the_shift_by_one():
    words = LABELS[N:, 1]
    before = [sum(SOURCE[: GOLDEN['k'] + g]) for g in words]
    assert (
        before == GOLDEN['before_the_shift']
        and before[1:] + before[-1:] == GOLDEN['after_the_shift']
    )
    reads = np.asarray(
        wait_k_reads(*(jnp.asarray(LABELS[None, :, c]) for c in (0, 1)), GOLDEN['k'])
    )[0, N:]
    assert reads.tolist() == [GOLDEN['readable_segments'][g] for g in (*words[1:], words[-1])]


@pytest.mark.full_but_one
@pytest.mark.parametrize('k', [1, 2, 3, 7])
@pytest.mark.parametrize(
    'words', [(SOURCE, TARGET), ([1, 1, 1, 1, 1, 1], [2, 1, 1, 3]), ([4], [1, 1]), ([1, 2], [5])]
)
def test_the_mask_word_by_word(words, k):
    np.testing.assert_array_equal(
        mask(f'gpe(k={k})', placed(f'gpe(k={k})', labels(*words))), by_hand(*words, k)
    )


def test_a_large_k_sees_the_full_source():
    np.testing.assert_array_equal(
        mask('gpe(k=99)', placed('gpe(k=99)', LABELS)), np.tril(np.ones((N + M, N + M), int))
    )


def test_phi_starts_the_target():
    assert placed('gpe(k=1, phi=30)', LABELS).pos[0, N:].tolist() == [30, 31, 32, 33]
    assert placed(f'gpe(k=1, phi={N})', LABELS).pos[0].tolist() == list(
        range(N + M)
    )  # the batch layout


def test_a_source_of_one_length_is_words_of_one_token():
    spec, n, m = 'gpe(k=2, source=5)', 5, 4
    tok = pj.make(spec).place(pj.Tokens.of(length=n + m))
    words = placed(
        'gpe(k=2)', labels([1] * n, [1] * m + [1])
    )  # one row more: the last one's view is the next one's
    np.testing.assert_array_equal(tok.pos[0], words.pos[0, :-1])
    np.testing.assert_array_equal(mask(spec, tok), mask('gpe(k=2)', words)[:-1, :-1])
    np.testing.assert_array_equal(
        pj.make(spec).place(pj.Tokens.of(positions=[[3] * 9])).pos, tok.pos
    )


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
    order = arrival(k)
    assert order != list(range(N + M))
    together, streamed = (
        placed(f'gpe(k={k}, phi=3)', LABELS),
        placed(f'gpe(k={k}, phi=3)', LABELS[order]),
    )
    np.testing.assert_array_equal(streamed.pos[0], together.pos[0, jnp.array(order)])
    np.testing.assert_array_equal(
        mask(f'gpe(k={k})', streamed), mask(f'gpe(k={k})', together)[np.ix_(order, order)]
    )


def test_a_token_that_has_not_arrived_is_not_seen():
    order = [
        0,
        1,
        7,
        *range(2, 7),
        8,
        9,
        10,
    ]  # the first target row is fed in before the source word it may see
    assert mask('gpe(k=1)', placed('gpe(k=1)', LABELS[order]))[2].tolist() == [1, 1, 1] + [0] * 8


@pytest.mark.full_but_one
@pytest.mark.parametrize('k', [1, 2])
def test_reading_and_writing_equals_the_masked_full_pass(k):
    cfg = TransformerConfig(
        vocab_size=13, train_len=16, layers=2, width=16, heads=2, encoding=f'gpe(k={k}) | rope()'
    )
    model, order = Transformer(cfg, rngs=nnx.Rngs(0)), np.array(arrival(k))
    words = np.random.default_rng(1).integers(13, size=(2, N + M), dtype=np.int32)
    read = jax.jit(lambda labels: model(words, pj.Tokens.of(positions=labels[None])))
    full = np.asarray(read(LABELS))
    stream, tok = words[:, order], pj.Tokens.of(positions=LABELS[None, order])
    first, cache = jax.jit(prefill)(model, init_cache(model, tok), stream[:, :2])
    rows, step = [np.asarray(first)], jax.jit(decode_step)
    for at in range(2, N + M):
        logits, cache = step(model, cache, stream[:, at])
        rows.append(np.asarray(logits)[:, None])
    np.testing.assert_allclose(np.concatenate(rows, axis=1), full[:, order], atol=1e-5)
    assert np.abs(full - read(labels(SOURCE, [M]))).max() > 1e-2


def test_no_source_token_changes_with_the_target_nor_a_target_row_with_what_is_unread():
    encoding = pj.make('gpe(k=1) | rope()', head_dim=8)
    tok = encoding.place(pj.Tokens.of(positions=LABELS[None]))
    x = np.random.default_rng(0).standard_normal((1, N + M, 2, 8), dtype=np.float32)
    run = jax.jit(
        lambda x: pj.attend(
            encoding, *encoding.project(x, x, x, tok, tok), block=(4, 4), applied=pj.TOKEN_STAGE
        )[0]
    )
    out, seen, here = (
        np.asarray(run(x)),
        by_hand(SOURCE, TARGET, 1),
        np.arange(N + M)[:, None, None],
    )
    for token in range(N + M):
        changed = np.abs(run((x + (here == token)).astype(np.float32)) - out).max((1, 2)) > 1e-4
        np.testing.assert_array_equal(changed, seen[:, token] == 1)


@pytest.mark.full
def test_target_distances_do_not_depend_on_the_source_length():
    """The paper's point: no re-encoding, since reading more of the source moves no target id, nor
    writing a source id.
    """
    short, long = (
        placed('gpe(k=1)', labels([1, 1], [1] * 4)),
        placed('gpe(k=1)', labels([1] * 30, [1] * 4)),
    )
    np.testing.assert_array_equal(short.pos[0, -4:], long.pos[0, -4:])
    np.testing.assert_array_equal(gpe_ids(jnp.array([[0, 1, 0, 1, 1, 0]])), [[0, 0, 1, 1, 2, 2]])


def test_padding_on_either_side_changes_nothing():
    alone, allowed = placed('gpe(k=1)', LABELS), mask('gpe(k=1)', placed('gpe(k=1)', LABELS))
    filler = np.array([[1, 5], [0, 9], [7, -7]])  # what stands in padding does not matter
    for parts, start in (((filler, LABELS), 3), ((LABELS, filler), 0)):
        positions = np.concatenate(parts)
        real = slice(start, start + N + M)
        valid = np.zeros((1, len(positions)), bool)
        valid[:, real] = True
        padded = placed('gpe(k=1)', positions, valid=valid)
        np.testing.assert_array_equal(padded.pos[0, real], alone.pos[0])
        np.testing.assert_array_equal(mask('gpe(k=1)', padded)[real, real], allowed)


def test_packed_documents_are_placed_apart():
    other = labels([1, 1, 2], [2, 2])
    packed = placed(
        'gpe(k=1)', np.concatenate([LABELS, other]), segment=[[0] * len(LABELS) + [1] * len(other)]
    )
    for part, rows in ((LABELS, slice(0, len(LABELS))), (other, slice(len(LABELS), None))):
        alone = placed('gpe(k=1)', part)
        np.testing.assert_array_equal(packed.pos[0, rows], alone.pos[0])
        np.testing.assert_array_equal(mask('gpe(k=1)', packed)[rows, rows], mask('gpe(k=1)', alone))


def test_rows_may_share_positions_and_differ_in_padding():
    tok = dataclasses.replace(
        pj.Tokens.of(positions=LABELS[None]), valid=jnp.ones((2, N + M), bool).at[1, -1].set(False)
    )
    both = pj.make('gpe(k=1)').place(tok)
    assert both.pos.shape == (2, N + M) and both.feats['gpe']['reads'].shape == (2, N + M, 1)
    assert both.feats['gpe']['reads'][:, -2, 0].tolist() == [
        3,
        2,
    ]  # the second row's last target token keeps its own


@pytest.mark.full
def test_the_loss_pairs_the_first_target_token_with_the_row_after_the_source_prompt():
    """The sheet: array index src[0] for the first, the target row before it for the others;
    documents apart, padding left out.
    """
    batch = np.concatenate([LABELS, LABELS, [[-1, 0]]])
    document = np.repeat([0, 1, 2], [N + M, N + M, 1])
    rows = [start + row for start in (0, N + M) for row in (SOURCE[0], *range(N, N + M - 1))]
    targets = [start + row for start in (0, N + M) for row in range(N, N + M)]
    rng = np.random.default_rng(0)
    logits, tokens = (
        rng.normal(size=(1, len(batch), 7)).astype(np.float32),
        rng.integers(0, 7, (1, len(batch))),
    )
    found = gpe_loss(logits, tokens, batch[None, :, 0], batch[None, :, 1], document[None])
    log_p = logits[0] - np.log(np.exp(logits[0]).sum(-1, keepdims=True))
    assert found == pytest.approx(
        -np.mean([log_p[row, tokens[0, target]] for row, target in zip(rows, targets)]), rel=1e-5
    )
    gradient = np.asarray(
        jax.grad(gpe_loss)(logits, tokens, batch[None, :, 0], batch[None, :, 1], document[None])
    )[0]
    assert np.flatnonzero(np.abs(gradient).max(-1)).tolist() == sorted(rows)


def test_wrong_input_says_what_is_wrong():
    for arguments, message in (
        ('k=0', 'k must be at least 1, got 0'),
        ('k=1, phi=-1', 'phi must be at least 0, got -1'),
        ('k=1, source=0', 'source must be at least 1, got 0'),
    ):
        with pytest.raises(ValueError, match=message):
            pj.make(f'gpe({arguments})')
    place = lambda positions, spec='gpe(k=1)': pj.make(spec).place(
        pj.Tokens.of(positions=positions)
    )
    with pytest.raises(
        ValueError,
        match=r'integers \[B, L, 2\], group and segment, or `source` .* got int32 \(1, 2\)',
    ):
        place([[0, 1]])
    with pytest.raises(ValueError, match=r'got float32 \(1, 1, 2\)'):
        place([[[0.0, 1.0]]])
    with pytest.raises(
        ValueError, match=r'gpe\(source=3\) takes positions \[B, L\], got \(1, 1, 2\)'
    ):
        place([[[0, 1]]], 'gpe(k=1, source=3)')
    with pytest.raises(ValueError, match='group 2; 0 is the source and 1 the target'):
        place([[[0, 1], [2, 0]]])
    with pytest.raises(ValueError, match='segment -1; segments of a group count from 0'):
        place([[[0, -1]]])
