import functools

import numpy as np
import pytest

from posenc_jax.lab.config import protocols


def ranges(windows):
    return [(int(b), int(b + n)) for b, n in zip(windows.start, windows.size)]


def scored_targets(windows):
    rows = zip(windows.start + windows.size, windows.scored)
    return [int(target) for end, scored in rows for target in range(end - scored, end)]


def test_sliding_windows_of_the_sheet():
    windows = protocols.sliding(10, 4, 2)
    assert ranges(windows) == [(0, 4), (2, 6), (4, 8), (6, 10)]
    assert windows.scored.tolist() == [4, 2, 2, 2]


def test_sliding_by_the_whole_length_is_nonoverlapping():
    for windows in (protocols.sliding(10, 4, 4), protocols.nonoverlapping(10, 4)):
        assert ranges(windows) == [(0, 4), (4, 8), (8, 10)]
        assert windows.scored.tolist() == [4, 4, 2]


@pytest.mark.parametrize('targets', [7, 8, 9, 16, 31])
@pytest.mark.parametrize('length', [1, 3, 7])
def test_every_target_is_scored_once_and_with_context(targets, length):
    for stride in range(1, length + 1):
        windows = protocols.sliding(targets, length, stride)
        assert scored_targets(windows) == list(range(targets))
        context = windows.size - windows.scored
        assert (context[1:] >= length - stride).all()
        assert all(size <= length for size in windows.size)


def test_stride_one_scores_one_target_a_window_with_full_context():
    windows = protocols.sliding(9, 4, 1)
    assert windows.scored.tolist() == [4, 1, 1, 1, 1, 1] and set(windows.size) == {4}


@pytest.mark.parametrize('blocks', [1, 3, 100])
def test_same_tokens_scores_the_same_disjoint_targets_at_every_length(blocks):
    plans = protocols.same_tokens(100, (8, 16, 64), scored=4, blocks=blocks)
    targets = {length: scored_targets(windows) for length, windows in plans.items()}
    assert targets[8] == targets[16] == targets[64]
    # (100 - 64) // 4 + 1 blocks fit.
    assert len(set(targets[8])) == len(targets[8]) == 4 * min(blocks, 10)
    for length, windows in plans.items():
        assert set(windows.size) == {length} and windows.start.min() >= 0
        assert (windows.start + windows.size).max() <= 100


def test_position_edges_do_not_straddle_the_trained_length():
    edges = protocols.position_edges(1024, 8)
    assert edges[0] == 0 and edges[-1] == 1024 and len(edges) == 9
    assert (np.diff(edges) > 0).all() and {128, 256, 512} <= set(edges.tolist())
    assert protocols.position_edges(4, 50).tolist() == [0, 1, 2, 3, 4]


def test_window_batch_shifts_targets_and_marks_what_is_scored():
    stream = np.arange(100, 111)
    batch = protocols.window_batch(stream, protocols.sliding(10, 4, 3), np.array([1, 2]))
    assert batch['tokens'].tolist() == [[103, 104, 105, 106], [106, 107, 108, 109]]
    assert batch['targets'].tolist() == [[104, 105, 106, 107], [107, 108, 109, 110]]
    assert batch['scored'].tolist() == [[False, True, True, True]] * 2
    ragged = protocols.window_batch(stream, protocols.nonoverlapping(10, 4), np.array([2]))
    assert ragged['valid'].tolist() == ragged['scored'].tolist() == [[True, True, False, False]]
    assert ragged['targets'][0, :2].tolist() == [109, 110]


same_tokens = functools.partial(protocols.same_tokens, lengths=(8, 16), scored=4, blocks=1)
REFUSED = {  # what the message says -> the call
    'needs 12 tokens, but the text has 11': lambda: protocols.nonoverlapping(10, 11),
    'between 1 and the shortest length, 4': lambda: protocols.sliding(10, 4, 5),
    'stride is 0': lambda: protocols.sliding(10, 4, 0),
    'between 1 and the shortest length, 8': lambda: same_tokens(100, scored=9),
    'needs 17 tokens': lambda: same_tokens(10),
    'blocks must be at least 1': lambda: same_tokens(100, blocks=0),
    'buckets must be at least 1': lambda: protocols.position_edges(8, 0),
}


@pytest.mark.parametrize('message', REFUSED)
def test_wrong_numbers(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message]()


def test_stretches_lie_at_equal_distances_from_start_to_end():
    names = 'nonoverlapping', 'sliding', 'per_position'
    plans = protocols.plan(999, (8, 32), names, tokens=128, stride=4)
    plan = {name: windows for name, length, windows in plans if length == 32}
    starts = [0, 322, 645, 967]
    assert plan['nonoverlapping'].start.tolist() == starts
    assert plan['per_position'].start.tolist() == starts
    # Four times 128 tokens are read: 16 windows of 32, in one stretch.
    assert plan['sliding'].start.tolist() == list(range(0, 64, 4))
    for windows in plan.values():
        assert (windows.start + windows.size).max() <= 999


def test_all_lengths_score_the_same_targets_of_a_stretch():
    scored = {}
    names = 'nonoverlapping', 'sliding'
    for name, _, windows in protocols.plan(999, (8, 12, 32), names, tokens=300, stride=4):
        ends = windows.start + windows.size
        own = [range(end - n, end) for end, n in zip(ends, windows.scored)]
        targets = np.concatenate(own)
        assert len(targets) == len(set(targets.tolist()))
        scored.setdefault(name, []).append(sorted(targets.tolist()))
    for name, (first, *rest) in scored.items():
        assert all(other == first for other in rest), name
        assert first[-1] == (998 if name == 'nonoverlapping' else first[-1])
    assert len(scored['nonoverlapping'][0]) == 288  # nine stretches of 32


def test_a_stride_is_at_most_the_length():
    def plans(lengths, stride):
        names = 'sliding', 'same_tokens', 'nonoverlapping'
        found = protocols.plan(999, lengths, names, tokens=300, stride=stride)
        return {(name, n): (ranges(plan), plan.scored.tolist()) for name, n, plan in found}

    long, usual = plans((8, 32), 64), plans((8, 32), 32)
    assert long == usual
    assert long['sliding', 32] == plans((32,), 32)['sliding', 32]
    # At the shortest length every window is scored whole.
    for name in ('sliding', 'same_tokens'):
        windows, scored = long[name, 8]
        assert scored == [end - begin for begin, end in windows]
        found = protocols.plan(999, (8, 32), (name,), tokens=300, stride=64)
        targets = {n: scored_targets(plan) for _, n, plan in found}
        assert sorted(targets[8]) == sorted(targets[32]) != []
    assert long['same_tokens', 32][1] == [8] * len(long['same_tokens', 8][0])


def test_a_text_that_is_scored_whole_is_one_stretch():
    ((_, _, windows),) = protocols.plan(99, (8,), ('nonoverlapping',), tokens=99, stride=4)
    assert windows.start.tolist() == list(range(0, 99, 8)) and windows.size[-1] == 3
