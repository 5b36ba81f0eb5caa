"""Tests of `benchmarks.fuzz`, which gives the package random wrong input: the program detects every
kind of failure, and the package passes a few tries of each target.
"""

import random

import pytest

from benchmarks.fuzz import harness
from benchmarks.fuzz.__main__ import TARGETS
from benchmarks.fuzz.target import LONGEST, problem
from tests import fuzz_fake

# What is read may leave reads that failed beside it, which Python mentions when they are collected.
pytestmark = pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')

FAKE = 'tests.fuzz_fake'
EXPECTED = {
    'traceback': "KeyError: 'step'; input 'traceback'",
    'lines': "a message of 2 lines: 'ValueError: one\\ntwo'; input 'lines'",
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
        fuzz_fake.make(random.Random(f'{FAKE} 0 {number}'), None, None) for number in range(20)
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
    for folder in ('one', 'two'):
        (tmp_path / folder).mkdir()
        shown.append(
            target.show(target.make(random.Random(f'{name} 0 7'), good, tmp_path / folder)).replace(
                folder, ''
            )
        )
    assert shown[0] == shown[1]  # a try depends on its number alone
