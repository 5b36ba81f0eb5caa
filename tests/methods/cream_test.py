"""CREAM: the censored normal, the bounds of the middle, runs of ids, the text that goes with
them.
"""

import itertools

import jax
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.lab.tasks.language import CreamText, Language
from posenc_jax.methods.cream import cream_bounds, cream_heads, cream_ids, cream_thresholds
from tests.golden_files import golden, golden_suite
from tests.refusals import refused

GOLDEN = golden('cream')['values']


def place(tok, factor=2, key=0):
    encoding = pj.make(f'cream(factor={factor})', train_len=tok.length)
    return np.asarray(encoding.place(tok, key=jax.random.key(key)).pos)


def draws(factor, rows, length, key=0):
    return place(pj.Tokens.of(valid=np.ones((rows, length), bool)), factor, key)


def head_of(ids, count, factor):
    """The number of first ids that all rows have, of the two that a coin decides between."""
    ends = lambda h: (ids[:, h - 1] == h - 1).all() and (ids[:, -h] == count * factor - h).all()
    return next(h for h in cream_heads(count, factor) if ends(h) and len(set(ids[:, h])) > 1)


def runs(ids):
    """How many contiguous runs one row has."""
    return 1 + (np.diff(ids) != 1).sum()


test_golden = golden_suite('cream') | {
    'probabilities': (
        lambda: np.diff(np.concatenate([[0], cream_thresholds(8), [1]])),
        {'atol': 5e-5},
    ),
    **{
        f'{which}.ends': lambda golden: [
            list(cream_bounds(alpha, golden['head'], 4096)) for alpha in GOLDEN['alphas']
        ]
        for which in ('third', 'near')
    },
}


def test_the_normal_distribution_is_censored_not_renormalised():
    """The mean 1 + f lies nearer to 2 f than to 2 by half a step."""
    first, last = cream_thresholds(8)[0], 1 - cream_thresholds(8)[-1]
    assert first > last


def test_heads_of_the_paper():
    for case in (GOLDEN['third'], GOLDEN['near']):
        assert case['head'] in cream_heads(4096, 8)
        assert 4096 - 2 * case['head'] == case['middle']


def test_alpha_two_glues_the_middle_to_the_head():
    for count, head in ((4096, 1365), (4096, 32), (65, 21), (24, 8)):
        low, high = cream_bounds(2, head, count)
        assert low == high == count - head - 1
        ids = cream_ids(low, head, count, 4, np.arange(count))[: count - head]
        assert ids.tolist() == list(range(count - head))


@pytest.mark.parametrize(('count', 'factor'), [(65, 8), (64, 4), (24, 2), (25, 3), (9, 1)])
def test_every_end_gives_ascending_ids_in_three_runs(count, factor):
    for head, alpha in itertools.product(cream_heads(count, factor), range(2, 2 * factor + 1)):
        low, high = cream_bounds(alpha, head, count)
        assert low <= high
        for end in range(low, high + 1):
            ids = cream_ids(end, head, count, factor, np.arange(count))
            assert (np.diff(ids) > 0).all() and runs(ids) <= 3
            assert ids[0] == 0 and ids[-1] == count * factor - 1
            assert ids[head - 1] == head - 1 and ids[count - head] == count * factor - head
            assert ids[count - head - 1] == end


def test_drawn_ids():
    count, factor = 64, 4
    seen = set()
    for key in range(12):
        ids = draws(factor, 50, count, key)
        seen.add(head_of(ids, count, factor))
        assert ids.shape == (50, count) and (np.diff(ids, axis=1) > 0).all()
        assert (ids[:, [0, -1]] == [0, count * factor - 1]).all()
        assert all(runs(row) <= 3 for row in ids)
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
    ids = place(pj.Tokens.of(valid=np.array([[False] * 4 + [True] * 20, [True] * 24])), key=3)
    assert ids[0, 4] == 0 and (np.diff(ids[0, 4:]) > 0).all() and ids[1, -1] == 47
    ids = place(pj.Tokens.of(segment=[[0] * 10 + [1] * 14]), key=3)[0]
    np.testing.assert_array_equal(ids[:10], ids[10:20])


def chosen(task, length, seed=0):
    """What the task keeps of 30 texts, and the ids that go with it."""
    return task.choose(np.random.default_rng(seed), 30, length)


@pytest.mark.parametrize('source', [48, 30, 24])
def test_text_of_longer_sources(source):
    """Head and tail are the ends of the text; the middle stands at its ids if the text reaches
    them, else before the tail.
    """
    inside, head = set(), 8  # the head is both N // 3 and 4 f
    for seed in range(10):
        kept, ids = chosen(CreamText(factor=2, source_len=source), 24, seed)
        for row, at in zip(ids, kept):
            fits = row[15] < source
            inside.add(bool(fits))
            middle = row[head:-head] if fits else np.arange(source - 16, source - 8)
            expected = [*range(head), *middle, *range(source - head, source)]
            assert at.tolist() == expected
    assert inside == ({True} if source == 48 else {True, False})


def test_the_task_tosses_one_coin_a_batch_for_its_heads():
    ids = (chosen(CreamText(factor=4), 64, seed)[1] for seed in range(12))
    assert {head_of(rows, 64, 4) for rows in ids} == {21, 16}


def test_batches_of_the_task():
    of = lambda task, **split: task.dataset(length=24, batch_size=4, seed=1, **split)
    task, plain = CreamText(factor=2, source_len=48), Language()
    text, batch = plain.tokens('train').tobytes(), of(task)[3]
    row, target = batch['tokens'][0], batch['targets'][0]
    assert row[:8].tobytes() in text and (row[1:8] == target[:7]).all()
    assert batch['positions'][0, -1] == 47
    # The last token of a piece has the true next token as its target.
    assert np.append(row[:8], target[7]).astype(np.int32).tobytes() in text
    validation, whole = (of(t, split='validation')[0] for t in (task, plain))
    np.testing.assert_array_equal(validation['tokens'], whole['tokens'])
    assert 'positions' not in validation


def placed(positions):
    part = pj.make('cream(factor=1)', train_len=9)
    return part.place(pj.Tokens.of(positions=positions), key=jax.random.key(0))


def test_a_table_of_all_its_positions_is_taken():
    pj.make('cream(factor=2) | learned_absolute(max_len=64)', train_len=32, model_dim=4)


WRONG = 'factor must be an integer of at least 1, got'
test_wrong_calls = refused() | {
    f'{WRONG} 0': lambda: cream_thresholds(0),
    f'{WRONG} 1.5': lambda: cream_thresholds(1.5),
    f'{WRONG} True': lambda: cream_thresholds(True),
    'heads and tails of 8 tokens: it needs more than 16, got 16': lambda: draws(2, 1, 16),
    'needs more than 16, got 16': lambda: CreamText(factor=2).width(16),
    'rows of 32 tokens do not fit texts of source_len=24': lambda: CreamText(
        factor=2, source_len=24
    ).width(32),
    r'cream needs integer positions \[B, L\], got float32 \(1, 2\)': lambda: placed([[0.5, 1.0]]),
    'position 9 is not in 0 .. 8': lambda: placed([[*range(8), 9]]),
}
