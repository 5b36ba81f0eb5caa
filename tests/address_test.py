"""Tests of the address of the repository, which one command writes wherever it stands."""

import pathlib
import shutil

import pytest

from website import address

ROOT = pathlib.Path(__file__).parents[1]


def standing(root):
    """What stands in the place of the address, by file."""
    return {
        path.relative_to(root): {found[2] for found in pattern.finditer(path.read_text())}
        for path, pattern in address.places(root).items()
    }


@pytest.fixture
def copy(tmp_path):
    for path in (ROOT / 'pyproject.toml', *address.places()):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    return tmp_path


def test_all_places_have_the_address_of_the_project():
    known = address.address()
    for path, found in standing(ROOT).items():
        unknown = '' if path.suffix == '.ipynb' else address.UNKNOWN
        assert found == {known or unknown}, path
    assert len(standing(ROOT)) == 5


def test_one_command_writes_it_everywhere_and_changes_it(copy):
    for url in ('https://example.org/a/posenc_jax', 'https://example.org/b.git'):
        assert len(address.write(url, copy)) == 6
        assert address.address(copy) == url
        assert all(found == {url} for found in standing(copy).values())
    before = (ROOT / 'README.md').read_text()
    after = before.replace(address.address() or address.UNKNOWN, url)
    assert (copy / 'README.md').read_text() == after


@pytest.mark.parametrize('wrong', ['', 'posenc_jax', 'git+https://a.b/c', 'https://a.b/c d'])
def test_what_is_no_address_is_refused_and_nothing_is_written(copy, wrong):
    with pytest.raises(ValueError, match='^expected an address like https://'):
        address.write(wrong, copy)
    assert standing(copy) == standing(ROOT)


def test_a_text_without_a_place_is_an_error_before_anything_is_written(copy):
    (copy / 'docs' / 'usage.md').write_text('no address')
    with pytest.raises(ValueError, match='usage.md has no place for the address'):
        address.write('https://example.org/posenc_jax', copy)
    assert address.address(copy) == address.address()
