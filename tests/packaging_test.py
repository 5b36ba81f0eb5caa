"""Tests that pip and the extras of the package read their dependencies from `requirements/`."""

import pathlib
import re
import tomllib

ROOT = pathlib.Path(__file__).parents[1]
LISTS = {path.stem: path for path in sorted((ROOT / 'requirements').glob('*.txt'))}
SETTINGS = tomllib.loads((ROOT / 'pyproject.toml').read_text())
EXTRAS = {'train', 'pretrained', 'tfds', 'images', 'dev', 'docs'}


def lines(path: pathlib.Path) -> list[str]:
    """The lines of a list without its comments."""
    found = [line.split('#')[0].strip() for line in path.read_text().splitlines()]
    return [line for line in found if line]


def read(path: pathlib.Path) -> set[pathlib.Path]:
    """The lists that a file of pip's reads, itself left out."""
    names = [line.removeprefix('-r ') for line in lines(path) if line.startswith('-r ')]
    direct = {(path.parent / name).resolve() for name in names}
    return direct.union(*map(read, direct))


def test_the_package_and_its_extras_read_the_lists():
    dynamic = SETTINGS['tool']['setuptools']['dynamic']
    extras = dynamic['optional-dependencies']
    assert dynamic['dependencies'] == {'file': 'requirements/core.txt'}
    assert extras == {name: {'file': f'requirements/{name}.txt'} for name in EXTRAS}
    assert set(SETTINGS['project']['dynamic']) >= {'dependencies', 'optional-dependencies'}
    assert not {'dependencies', 'optional-dependencies'} & SETTINGS['project'].keys()


def test_the_files_of_the_readme_hold_no_bounds_of_their_own():
    own, dev = ROOT / 'requirements.txt', ROOT / 'requirements-dev.txt'
    assert read(own) == {LISTS[name] for name in ('core', 'train', 'pretrained', 'tfds', 'images')}
    assert read(dev) == {own, LISTS['dev'], *read(own)}
    assert all(line.startswith('-r ') for path in (own, dev) for line in lines(path))


def test_a_package_has_the_same_bounds_wherever_it_is_listed():
    bounds = {}
    for path in LISTS.values():
        for line in lines(path):  # setuptools reads no options, so a list refers to no other
            name, bound = re.fullmatch(r'([\w.-]+(?:\[\w+\])?)([<>=][^;]*)', line).groups()
            assert bounds.setdefault(name, bound) == bound, f'{path.name}: {line}'


def test_the_package_says_that_it_is_typed():
    assert (ROOT / 'posenc_jax' / 'py.typed').is_file()
    assert SETTINGS['tool']['setuptools']['package-data'] == {'posenc_jax': ['py.typed']}
