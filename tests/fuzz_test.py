"""Tests of `benchmarks.fuzz`, which gives the package random wrong input: the program detects every
kind of failure, and the package passes a few tries of each target.
"""

import contextlib
import os
import random
import runpy
import sys

import numpy as np
import pytest

from benchmarks.fuzz import damage, harness, programs
from benchmarks.fuzz.__main__ import TARGETS
from benchmarks.fuzz.target import LONGEST, problem
from posenc_jax.lab.evaluate import results
from posenc_jax.lab.files import lock
from posenc_jax.lab.runs import stored
from posenc_jax.lab.tasks.graphs import edge_lists
from posenc_jax.lab.tasks.images import folder as pictures
from posenc_jax.lab.tasks.points.points_folder import PointsFolder
from tests import fuzz_fake

# What is read may leave reads that failed beside it, which Python mentions when they are collected.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')

FAKE = 'tests.fuzz_fake'
EXPECTED = {
    'traceback': "KeyError: 'step'; input traceback",
    'lines': "a message of 2 lines: 'ValueError: one\\ntwo'; input lines",
    'controls': "control characters in the line: 'ValueError: a \\x1b[31mred line'; input controls",
    'changed': 'something outside of the folder of the try was changed; input changed',
    'added': 'something outside of the folder of the try was changed; input added',
    'crash': 'the process ended with status -6',
    'exit': 'the process ended with status 0',
    'hang': 'more than 2 seconds',
    'memory': 'more than 0 GiB of memory',
}


def test_every_way_to_fail_is_noticed_and_the_tries_after_it_are_made(monkeypatch):
    monkeypatch.setattr(harness, 'SECONDS', 2)
    monkeypatch.setattr(harness, 'WAITING', 1)
    monkeypatch.setattr(harness, 'BYTES', 2**27)
    kinds = [
        fuzz_fake.make(random.Random(f'{FAKE} 0 {number}'), None, None)[0] for number in range(40)
    ]
    assert set(kinds) == set(fuzz_fake.KINDS)
    outcomes, failures = harness.fuzz(FAKE, 0, len(kinds), 2)
    expected = [(number, EXPECTED[kind]) for number, kind in enumerate(kinds) if kind in EXPECTED]
    assert failures == expected
    assert outcomes == {
        'read': kinds.count('read'),
        'refused': kinds.count('refused'),
        'failed': len(expected),
    }


def test_what_an_error_must_be():
    assert (
        problem(ValueError('a line'))
        is problem(OSError(2, 'No such file', 'a'))
        is problem(ImportError('a'))
        is None
    )
    assert problem(ValueError('')) == 'ValueError without a message'
    assert problem(RecursionError('a')) == 'RecursionError: a'
    assert problem(AssertionError('other arrays')) == 'AssertionError: other arrays'
    assert 'characters' in problem(ValueError('a' * (LONGEST + 1)))


@pytest.mark.full_but_one
@pytest.mark.parametrize('name', TARGETS)
def test_targets(name, tmp_path):
    target = harness.load(name)
    good = tmp_path / 'good'
    good.mkdir()
    target.prepare(good)
    kinds, number = set(), 0
    while number < 10 or (number < 100 and len(kinds) < 2):
        kind, why = harness.attempt(target, name, 0, number, good)
        assert kind != 'failed', f'{number}: {why}'
        kinds.add(kind)
        number += 1
    assert kinds == {'read', 'refused'}  # it damages, and not everything
    assert [path.name for path in tmp_path.iterdir()] == ['good']  # tries leave nothing behind
    shown = []
    for folder in ('first_folder', 'other_folder'):
        (tmp_path / folder).mkdir()
        shown.append(
            target.show(target.make(random.Random(f'{name} 0 7'), good, tmp_path / folder)).replace(
                folder, ''
            )
        )
    assert shown[0] == shown[1]  # a try depends on its number alone


@contextlib.contextmanager
def written_through_links(path, *_):
    if path.is_file():
        path.write_text('{}')
    yield


def executed(path, read=stored.read_saved):
    for module in path.parent.glob('imports/*.py'):
        runpy.run_path(str(module))
    return read(path)


def unpickled(task):
    return [np.load(file, allow_pickle=True) for own in task.files.values() for file in own]


def raising(error):
    def call(*_, **__):
        raise error

    return call


# Target -> where a defect is put, what it is, and what a report says of it.
DEFECTS = {
    'graphs': (edge_lists, 'read_labels', raising(ValueError('one\ntwo')), 'a message of 2 lines'),
    'images': (pictures, '_read', raising(KeyError('IHDR')), "KeyError: 'IHDR'"),
    'locks': (lock, 'hold', written_through_links, 'outside of the folder of the try'),
    'points': (PointsFolder, 'stored', property(unpickled), 'code that was in a file was executed'),
    'results': (results, 'print_tables', lambda _: print('\x1b[31m'), 'control characters'),
    'runs': (stored, 'read_saved', executed, 'code of the run was executed'),
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('name', DEFECTS)
def test_a_defect_of_what_reads_files_is_found(name, tmp_path, monkeypatch):
    target, (owner, attribute, defect, words) = harness.load(name), DEFECTS[name]
    good = tmp_path / 'good'
    good.mkdir()
    target.prepare(good)
    monkeypatch.setattr(owner, attribute, defect)
    tries = (harness.attempt(target, name, 0, number, good) for number in range(300))
    assert any(kind == 'failed' and words in why for kind, why in tries)


def test_a_program_must_end_in_one_line_without_control_characters():
    assert programs.run(lambda _: print('a table')) == 'a table\n'
    with pytest.raises(programs.RefusedError, match='^no such run$'):
        programs.run(lambda _: print('no such run', end='', file=sys.stderr) or 2)
    with pytest.raises(AssertionError, match='ended with status 1'):
        programs.run(lambda _: 1)
    with pytest.raises(AssertionError, match='control characters were printed'):
        programs.run(lambda _: print('\x1b[31mred'))


def test_odd_files_and_trees_stay_where_they_are_put(tmp_path):
    (tmp_path / 'source' / 'a').mkdir(parents=True)
    (tmp_path / 'source' / 'a' / '0.npy').write_text('x')
    (tmp_path / 'beside').write_text('y')
    found = set()
    for number in range(60):
        rng, root = random.Random(number), tmp_path / f'tree{number}'
        damage.odd_tree(rng, tmp_path / 'source', root, '.npy', tmp_path / 'beside')
        found.add(damage.odd_file(rng, tmp_path / 'odd', tmp_path / 'beside'))
    assert len(found) > 12 and {'a pipe', 'a link to nothing', 'a folder'} <= found
    assert (tmp_path / 'source' / 'a' / '0.npy').read_text() == 'x'
    assert (tmp_path / 'beside').read_text() == 'y'
    assert not os.path.exists(tmp_path / 'new')
    damage.remove(tmp_path / 'odd')
    assert not os.path.lexists(tmp_path / 'odd')
