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


def test_slow_tests_exist():
    sources = {name.split('::')[0] for name in tiers.slow()}
    text = {name: (tiers.PATH.parents[1] / name).read_text(encoding='utf-8') for name in sources}
    for name in tiers.slow():
        path, _, test = name.partition('::')
        assert test.split('[')[0] in text[path], name


def test_a_report_changes_what_it_has(tmp_path, monkeypatch):
    monkeypatch.setattr(tiers, 'PATH', tmp_path / 'slow.txt')
    tiers.PATH.write_text('tests/a_test.py::test_x[1]\ntests/a_test.py::test_y\n')
    case = '<testcase classname="tests.{}" name="{}" time="{}"/>'
    known = [
        *(('a_test', 'test_x[1]', 0.1), ('contract_test', 'q', 9)),
        *(('b.c_test', 'test_z', 0.9), ('b.c_test', 'test_of_its_file', 0.4)),
        *(('d_test', 'test_z', 0.9), ('e_test', 'test_y', 0.2), ('e_test', 'test_z', 0.4)),
    ]
    report = tmp_path / 'report.xml'
    report.write_text(f'<suite>{"".join(case.format(*row) for row in known)}</suite>')
    assert tiers.measured(report) == {
        *('tests/a_test.py::test_y', 'tests/b/c_test.py::test_z'),
        *('tests/d_test.py::test_z', 'tests/e_test.py::test_z'),
    }
