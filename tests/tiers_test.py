"""Parts of the full tier."""

import argparse

import pytest

from tests import tiers


def test_every_test_is_in_one_part_beside_those_with_the_same_first_parameter():
    names = [f'a_test.py::test[{key}-{law}]' for key in 'abcdefgh' for law in ('x', 'y')]
    parts = [[name for name in names if tiers.is_in(name, (k, 3))] for k in range(3)]
    assert sorted(sum(parts, [])) == sorted(names) and all(parts)
    for own in parts:
        assert [name.replace('-x', '-y') for name in own[::2]] == own[1::2]


@pytest.mark.parametrize('text', ['3/3', '-1/3', '1', 'a/b', '0/0'])
def test_a_wrong_part(text):
    with pytest.raises(argparse.ArgumentTypeError, match='expected K/N with K from 0 to N - 1'):
        tiers.part(text)
    assert tiers.part('2/3') == (2, 3)
