"""SCAN: all commands and actions by a grammar and an interpreter of their own, and the split."""

import collections
import itertools
import re

import numpy as np
import pytest

from posenc_jax.lab.tasks.formal.scan import COMMANDS, Scan

SIDES = {'left': 'LTURN', 'right': 'RTURN'}


def grammar():
    """All sentences, expanded by the rules of the paper."""
    u = ['walk', 'look', 'run', 'jump']
    d = [f'{verb} {side}' for verb in [*u, 'turn'] for side in SIDES]
    bent = [re.sub(' ', f' {word} ', text) for text in d for word in ('opposite', 'around')]
    s = [text + end for text in [*u, *d, *bent] for end in ('', ' twice', ' thrice')]
    return s + [f'{x} {join} {y}' for x, y in itertools.product(s, s) for join in ('and', 'after')]


def interpreted(command):
    """The actions, by taking the text apart from the outermost word inwards."""
    for join, order in ((' and ', 1), (' after ', -1)):
        if join in command:
            return [action for part in command.split(join)[::order] for action in interpreted(part)]
    for word, times in ((' twice', 2), (' thrice', 3)):
        if command.endswith(word):
            return interpreted(command.removesuffix(word)) * times
    verb, *way = command.split()
    done = [] if verb == 'turn' else [verb.upper()]
    if not way:
        return done
    turn = [SIDES[way[-1]]]
    return {'opposite': turn * 2 + done, 'around': (turn + done) * 4}.get(way[0], turn + done)


def test_the_example_of_the_sheet():
    command = 'jump around left thrice and look opposite right thrice'
    actions = ['LTURN', 'JUMP'] * 12 + ['RTURN', 'RTURN', 'LOOK'] * 3
    assert interpreted(command) == actions and len(actions) == 33
    assert interpreted('jump left twice') == ['LTURN', 'JUMP', 'LTURN', 'JUMP']
    among = [COMMANDS[number] for number in np.flatnonzero(COMMANDS.lengths == 33)]
    assert (command.split(), actions) in among


def test_all_commands_and_their_actions():
    found = [COMMANDS[number] for number in range(len(COMMANDS.lengths))]
    texts = [' '.join(words) for words, _ in found]
    assert len(texts) == len(set(texts)) == 20910 and set(texts) == set(grammar())
    for number, (text, (words, actions)) in enumerate(zip(texts, found)):
        assert actions == interpreted(text), text
        assert len(actions) == COMMANDS.lengths[number] and len(words) <= 9
    # The sizes of the length split of the paper.
    short = COMMANDS.lengths <= 22
    assert (short.sum(), (~short).sum()) == (16990, 3920)
    assert (COMMANDS.lengths.max(), COMMANDS.lengths[~short].min()) == (48, 24)


@pytest.mark.parametrize('layout', ['row', 'source'])
@pytest.mark.parametrize('length', [(1, 22), 24, 48])
def test_rows_hold_a_command_and_its_actions(layout, length):
    task = Scan(layout)
    batch = task.sample(np.random.default_rng(0), 200, length)
    low, high = length if isinstance(length, tuple) else (length, length)
    assert batch['tokens'].shape == (200, high + 1 + 9 * (layout == 'row'))
    for row in range(200):
        answer = task.decode(batch['targets'][row][batch['loss_mask'][row] == 1]).split()
        read = task.decode(batch['tokens'][row]).rstrip('_ ').partition('^')
        if layout == 'source':
            real = batch['source_valid'][row]
            read = (task.decode(batch['source'][row][real]), *read[1:])
            assert real[: real.sum()].all() and batch['source'].shape == (200, 9)
        assert answer[-1] == '$' and low <= len(answer) - 1 <= high
        assert answer[:-1] == interpreted(read[0].strip())
        assert read[2].split() in (answer[:-1], answer)


def test_commands_are_drawn_equally_often():
    # One action: 4 verbs and 2 turns. Two: those 6 twice, 8 verbs with a side, 2 opposite turns,
    # and 72 pairs.
    rng = np.random.default_rng(0)
    counts = collections.Counter(' '.join(COMMANDS.draw(rng, 1, 2)[0]) for _ in range(2350))
    assert len(counts) == 94 and all(len(interpreted(text)) <= 2 for text in counts)
    assert 8 < min(counts.values()) < 25 < max(counts.values()) < 50
