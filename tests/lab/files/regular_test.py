"""Pipes, devices, sockets and links are named before they are opened. Nothing here is ever read."""

import os
import socket

import pytest

from posenc_jax.lab.files import regular


def make(kind, path, target):
    """Something that is no regular file. A link is one to `target`."""
    if kind == 'a pipe':
        os.mkfifo(path)
    elif kind == 'a folder':
        path.mkdir()
    elif kind == 'a socket':
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == 'a symbolic link to a device':
        path.symlink_to('/dev/zero')
    else:
        path.symlink_to(target)


KINDS = ['a pipe', 'a folder', 'a socket', 'a symbolic link to a device']


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a short name, since that of a socket must be short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path.relative_to(tmp_path)


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_no_regular_file_is_named(here, kind):
    path = here / 'a'
    make(kind, path, None)
    told = f'^a is {kind}, expected a regular file; move it away$'
    for read in (regular.check, regular.read_text):
        with pytest.raises(ValueError, match=told):
            read(path)
    with pytest.raises(ValueError, match=told.replace(' to a device', '')):
        regular.opened(path, os.O_RDWR | os.O_CREAT)


def test_a_link_is_read_but_not_opened_to_be_written(here):
    file, link, nowhere = here / 'file', here / 'link', here / 'nowhere'
    file.write_text('text')
    make('a symbolic link', link, 'file')
    make('a symbolic link', nowhere, 'absent')
    assert regular.read_text(link) == 'text'
    for path in (link, nowhere):
        with pytest.raises(ValueError, match=f'^{path} is a symbolic link, expected a regular'):
            regular.opened(path, os.O_RDWR | os.O_CREAT)
    assert sorted(path.name for path in here.iterdir()) == ['file', 'link', 'nowhere']
    with pytest.raises(FileNotFoundError):
        regular.read_text(nowhere)


def test_a_folder_and_what_is_in_it_may_be_links(here):
    """As where `checkpoints` of a run, or one of the checkpoints, lies on another disk."""
    deep = here / 'disk' / '4' / 'model' / 'd'
    deep.mkdir(parents=True)
    (deep / 'file').write_text('')
    make('a symbolic link', deep / 'link', 'file')
    make('a symbolic link', deep / 'nowhere', 'absent')
    (here / 'other').mkdir()
    make('a symbolic link', here / 'other' / '4', '../disk/4')
    make('a symbolic link', here / 'linked', 'other')
    for folder in ('disk', 'other', 'linked', 'absent', 'disk/4/model/d/file'):
        regular.check_below(here / folder)


@pytest.mark.parametrize('place', ['run/a', 'run/4/a', 'run/4/model/d/a'])
@pytest.mark.parametrize('kind', [kind for kind in KINDS if kind != 'a folder'])
def test_one_of_many_is_found(here, kind, place):
    path = here / place
    path.parent.mkdir(parents=True)
    (path.parent / 'file').write_text('')
    make(kind, path, None)
    with pytest.raises(ValueError, match=f'^{place} is {kind}, expected a regular file'):
        regular.check_below(here / 'run')


def test_the_walk_stays_in_a_checkpoint_and_ends(here):
    (here / 'run' / '4').mkdir(parents=True)
    make('a symbolic link', here / 'run' / '5', '5')  # it leads to itself
    make('a symbolic link', here / 'run' / '6', '..')
    (here / 'pipes').mkdir()
    make('a pipe', here / 'pipes' / 'a', None)
    make('a symbolic link', here / 'run' / '4' / 'model', '../../pipes')
    with pytest.raises(ValueError, match='run/4/model is a symbolic link to a folder, expected'):
        regular.check_below(here / 'run')


def test_what_is_read_as_a_whole_is_small(here):
    for name in ('metadata', 'd/array'):
        path = here / 'run' / '4' / 'model' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        os.truncate(path, 2**42)
    with pytest.raises(ValueError, match=f'^run/4/model/metadata has {2**42} bytes, expected at'):
        regular.check_below(here / 'run')
    (here / 'run' / '4' / 'model' / 'metadata').unlink()
    regular.check_below(here / 'run')  # arrays may be large
