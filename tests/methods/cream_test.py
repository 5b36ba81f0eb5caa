"""CREAM: the censored normal, the bounds of the middle, runs of ids, the text that goes with
them.
"""

import jax
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.tasks.language import CreamText, Language
from posenc_jax.methods.cream import cream_bounds, cream_heads, cream_ids, cream_thresholds
from tests.golden_files import golden

GOLDEN = golden('cream')['values']


def draws(factor, rows, length, key=0):
    tok = pj.Tokens.of(valid=np.ones((rows, length), bool))
    return np.asarray(
        pj.make(f'cream(factor={factor})', train_len=length).place(tok, key=jax.random.key(key)).pos
    )


def runs(ids):
    """The contiguous runs of one row, as (first id, size)."""
    starts = np.flatnonzero(np.diff(ids, prepend=ids[0] - 2) != 1)
    return [
        (int(ids[start]), int(size))
        for start, size in zip(starts, np.diff(np.append(starts, len(ids))))
    ]


def test_golden_probabilities():
    steps = np.diff(np.concatenate([[0], cream_thresholds(8), [1]]))
    np.testing.assert_allclose(steps, GOLDEN['probabilities'], atol=5e-5)
    assert (
        steps[0] > steps[-1]
    )  # censored, not renormalised: the mean 1 + f lies nearer to 2 f than to 2 by half a step


@pytest.mark.parametrize('which', ['third', 'near'])
def test_golden_bounds(which):
    golden = GOLDEN[which]
    assert golden['head'] in cream_heads(4096, 8) and 4096 - 2 * golden['head'] == golden['middle']
    assert [
        list(cream_bounds(alpha, golden['head'], 4096)) for alpha in GOLDEN['alphas']
    ] == golden['ends']


def test_alpha_two_glues_the_middle_to_the_head():
    for count, head in ((4096, 1365), (4096, 32), (65, 21), (24, 8)):
        low, high = cream_bounds(2, head, count)
        assert low == high == count - head - 1
        assert cream_ids(low, head, count, 4, np.arange(count))[: count - head].tolist() == list(
            range(count - head)
        )


@pytest.mark.parametrize(('count', 'factor'), [(65, 8), (64, 4), (24, 2), (25, 3), (9, 1)])
def test_every_end_gives_ascending_ids_in_three_runs(count, factor):
    for head in cream_heads(count, factor):
        for alpha in range(2, 2 * factor + 1):
            low, high = cream_bounds(alpha, head, count)
            assert low <= high
            for end in range(low, high + 1):
                ids = cream_ids(end, head, count, factor, np.arange(count))
                steps = np.diff(ids)
                assert (
                    ids[0] == 0
                    and ids[-1] == count * factor - 1
                    and (steps > 0).all()
                    and (steps > 1).sum() <= 2
                )
                assert (
                    ids[head - 1] == head - 1
                    and ids[count - head] == count * factor - head
                    and ids[count - head - 1] == end
                )


def test_drawn_ids():
    count, factor = 64, 4
    seen = set()
    for key in range(12):
        ids = draws(factor, 50, count, key)
        ends = lambda h: (ids[:, h - 1] == h - 1).all() and (ids[:, -h] == count * factor - h).all()
        seen.add(next(h for h in cream_heads(count, factor) if ends(h) and len(set(ids[:, h])) > 1))
        assert ids.shape == (50, count) and (np.diff(ids, axis=1) > 0).all()
        assert (ids[:, [0, -1]] == [0, count * factor - 1]).all()
        assert all(len(runs(row)) <= 3 for row in ids)
    assert seen == {21, 16}  # one coin for the batch


def test_the_draw_of_alpha_has_its_distribution():
    """With heads of N // 3 alpha = 2 is the rows whose middle follows the head at once."""
    count, factor, glued, total = 24, 2, 0, 0
    for key in range(40):
        ids = draws(factor, 100, count, key)
        if cream_heads(count, factor) == (8, 8):
            glued, total = glued + (ids[:, 8] == 8).sum(), total + 100
    alone = cream_thresholds(factor)[0]
    ways = lambda alpha: np.diff(cream_bounds(alpha, 8, count))[0] + 1
    touching = alone + sum(  # a larger alpha can put the end there too
        share / ways(alpha)
        for alpha, share in ((3, cream_thresholds(2)[1] - alone), (4, 1 - cream_thresholds(2)[1]))
        if cream_bounds(alpha, 8, count)[0] <= 15
    )
    assert total == 4000 and glued / total == pytest.approx(touching, abs=4 * 0.5 / total**0.5)


def test_evaluation_and_a_factor_of_one_leave_positions_alone():
    tok = pj.Tokens.of(length=20)
    assert pj.make('cream(factor=2)', train_len=24).place(tok) is tok
    np.testing.assert_array_equal(draws(1, 3, 20), np.tile(np.arange(20), (3, 1)))


def test_training_visits_every_position_of_the_longer_range():
    """Why it extends: training at N tokens has seen every id, hence every angle, of a text of N f,
    and neighbours of each.
    """
    seen = np.zeros(256, bool)
    for key in range(12):
        seen[draws(4, 50, 64, key)] = True
    assert seen.all()


@pytest.mark.full
def test_documents_and_padding_look_their_ids_up():
    valid = np.array([[False] * 4 + [True] * 20, [True] * 24])
    tok = pj.Tokens.of(valid=valid)
    ids = np.asarray(pj.make('cream(factor=2)', train_len=24).place(tok, key=jax.random.key(3)).pos)
    assert ids[0, 4] == 0 and (np.diff(ids[0, 4:]) > 0).all() and ids[1, -1] == 47
    packed = pj.Tokens.of(segment=[[0] * 10 + [1] * 14])
    ids = np.asarray(
        pj.make('cream(factor=2)', train_len=24).place(packed, key=jax.random.key(3)).pos
    )[0]
    np.testing.assert_array_equal(ids[:10], ids[10:20])


def one_row(task, length, seed=0):
    return task.choose(np.random.default_rng(seed), 30, length)


@pytest.mark.parametrize('source', [48, 30, 24])
def test_text_of_longer_sources(source):
    """Head and tail are the ends of the text; the middle stands at its ids if the text reaches
    them, else before the tail.
    """
    inside = set()
    for seed in range(10):
        kept, ids = one_row(CreamText(factor=2, source_len=source), 24, seed)
        for row, at in zip(ids, kept):
            head = 8  # both N // 3 and 4 f
            assert at[:head].tolist() == list(range(head)) and at[-head:].tolist() == list(
                range(source - head, source)
            )
            fits = row[15] < source
            inside.add(bool(fits))
            assert at[head:-head].tolist() == (
                row[head:-head].tolist() if fits else list(range(source - 16, source - 8))
            )
    assert inside == ({True} if source == 48 else {True, False})


def test_the_task_tosses_one_coin_a_batch_for_its_heads():
    count, factor, seen = 64, 4, set()
    for seed in range(12):
        _, ids = one_row(CreamText(factor=factor), count, seed)
        ends = lambda h: (ids[:, h - 1] == h - 1).all() and (ids[:, -h] == count * factor - h).all()
        seen.add(next(h for h in cream_heads(count, factor) if ends(h) and len(set(ids[:, h])) > 1))
    assert seen == {21, 16}


def test_batches_of_the_task():
    task, plain = CreamText(factor=2, source_len=48), Language()
    data = task.dataset(length=24, batch_size=4, seed=1)
    first, again = data[3], task.dataset(length=24, batch_size=4, seed=1)[3]
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
    halves = [
        task.dataset(length=24, batch_size=4, seed=1, shard=(part, 2))[3]['tokens']
        for part in (0, 1)
    ]
    np.testing.assert_array_equal(np.concatenate(halves), first['tokens'])
    text = plain.tokens('train').tobytes()
    row, target = first['tokens'][0], first['targets'][0]
    assert (
        row[:8].tobytes() in text
        and (row[1:8] == target[:7]).all()
        and first['positions'][0, -1] == 47
    )
    assert (
        np.append(row[:8], target[7]).astype(np.int32).tobytes() in text
    )  # the true next token at the end of a piece
    validation, whole = (
        t.dataset(length=24, batch_size=4, seed=1, split='validation')[0] for t in (task, plain)
    )
    np.testing.assert_array_equal(validation['tokens'], whole['tokens'])
    assert 'positions' not in validation


def test_wrong_input_says_what_is_wrong():
    for factor in (0, 1.5, True):
        with pytest.raises(
            ValueError, match=f'factor must be an integer of at least 1, got {factor}'
        ):
            cream_thresholds(factor)
    with pytest.raises(ValueError, match='cream factor must be an integer of at least 1, got 0'):
        pj.make('cream(factor=0)', train_len=9)
    with pytest.raises(ValueError, match='cream train_len, .* got 0'):
        pj.make('cream(factor=1)', train_len=0)
    with pytest.raises(
        ValueError,
        match='cream draws positions 0 .. 63, learned_absolute has 63; use a larger table',
    ):
        pj.make('cream(factor=2) | learned_absolute(max_len=63)', train_len=32, model_dim=4)
    pj.make('cream(factor=2) | learned_absolute(max_len=64)', train_len=32, model_dim=4)
    with pytest.raises(
        ValueError, match=r'heads and tails of 8 tokens: it needs more than 16, got 16'
    ):
        draws(2, 1, 16)
    with pytest.raises(ValueError, match=r'needs more than 16, got 16'):
        CreamText(factor=2).width(16)
    with pytest.raises(ValueError, match='rows of 32 tokens do not fit texts of source_len=24'):
        CreamText(factor=2, source_len=24).width(32)
    part = pj.make('cream(factor=1)', train_len=9)
    place = lambda positions: part.place(pj.Tokens.of(positions=positions), key=jax.random.key(0))
    with pytest.raises(
        ValueError, match=r'cream needs integer positions \[B, L\], got float32 \(1, 2\)'
    ):
        place([[0.5, 1.0]])
    with pytest.raises(ValueError, match='position 9 is not in 0 .. 8'):
        place([[*range(8), 9]])
