"""Files are complete or as they were, and a full disk is one line: /dev/full is a disk that is."""

import errno
import os
import pathlib
import re

import numpy as np
import pytest

from posenc_jax.lab.files import disk

FULL = pathlib.Path('/dev/full')
pytestmark = pytest.mark.skipif(not FULL.exists(), reason='needs /dev/full')


def draw(path):
    from matplotlib.figure import Figure

    disk.save_figure(Figure(figsize=(1, 1)), path)


WRITERS = {
    '.json': lambda path: disk.write(path, 'after'),
    '.npz': lambda path: disk.save_arrays(path, a=np.ones(3)),
    '.png': draw,
    '.svg': draw,
}


@pytest.mark.parametrize('ending', WRITERS)
def test_what_is_there_is_kept(tmp_path, monkeypatch, ending):
    def no_room(partial, content):
        partial.touch()
        with FULL.open('wb', buffering=0) as full:
            full.write(content)

    path = tmp_path / f'kept{ending}'
    path.write_text('before')
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, 'write_bytes', no_room)
        with pytest.raises(
            disk.DiskFullError,
            match=r'^the disk is full: \S+ needs [\d.]+ (bytes|KiB), .* are free',
        ):
            WRITERS[ending](path)
    assert path.read_text() == 'before' and list(tmp_path.iterdir()) == [path]
    WRITERS[ending](path)
    assert path.read_bytes() != b'before' and list(tmp_path.iterdir()) == [path]


def test_a_link_in_the_place_of_the_temporary_file_is_not_followed(tmp_path):
    """Otherwise the file that it points to would be overwritten."""
    own = tmp_path / 'own.txt'
    own.write_text('of somebody')
    (tmp_path / 'a.partial.txt').symlink_to(own)
    disk.write(tmp_path / 'a.txt', 'text')
    assert own.read_text() == 'of somebody' and (tmp_path / 'a.txt').read_text() == 'text'


def test_an_error_that_is_its_own_cause_is_looked_at_once():
    """A library may keep an error, and raise it again while the one that it caused is handled."""
    error, later = OSError('gone'), OSError('later')
    later.__cause__, error.__context__ = error, later
    assert not disk.is_full(error)
    later.errno = errno.ENOSPC
    assert disk.is_full(error)


def test_written_files_are_whole_and_folders_made(tmp_path):
    disk.write(tmp_path / 'a' / 'b.txt', 'text\n')
    disk.save_arrays(tmp_path / 'a' / 'c.npz', path=np.arange(3))
    assert (tmp_path / 'a' / 'b.txt').read_text() == 'text\n'
    assert np.load(tmp_path / 'a' / 'c.npz')['path'].tolist() == [0, 1, 2]
    assert sorted(file.name for file in (tmp_path / 'a').iterdir()) == ['b.txt', 'c.npz']


def test_pieces_are_there_completely_or_not_at_all(tmp_path, monkeypatch):
    file = disk.Appended(tmp_path / 'log')
    file.write(b'one\n')

    class Nearly:
        """A disk with room for two bytes more."""

        def __init__(self, real):
            self._real, self._room = real, 2

        def write(self, piece):
            if not self._room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._room -= len(piece[: self._room])
            return self._real.write(piece[:2])

        def __getattr__(self, name):
            return getattr(self._real, name)

    monkeypatch.setattr(file, '_file', Nearly(file._file))
    with pytest.raises(disk.DiskFullError, match='log needs 4 bytes'):
        file.write(b'two\n')
    assert (tmp_path / 'log').read_text() == 'one\n'
    with pytest.raises(disk.DiskFullError):
        disk.Appended(FULL).write(b'x')


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(PermissionError), disk.told(tmp_path):
        raise PermissionError(errno.EACCES, 'no')
    with pytest.raises(ValueError, match='RESOURCE_EXHAUSTED'), disk.told(tmp_path):
        raise ValueError('RESOURCE_EXHAUSTED: out of memory')
    with pytest.raises(disk.DiskFullError), disk.told(tmp_path):
        try:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        except OSError:
            raise ValueError('handle is closed')  # noqa: B904 (while the first was handled)


def test_room_is_asked_for_before(tmp_path):
    disk.need(tmp_path / 'not' / 'there', 1000)
    with pytest.raises(disk.DiskFullError, match=r'needs 888 PiB, [\d.]+ [KMGT]iB are free$'):
        disk.need(tmp_path, 10**18)


def test_a_file_system_that_names_no_size_is_not_full(monkeypatch):
    monkeypatch.setattr(
        os, 'statvfs', lambda place: os.statvfs_result([4096, 4096, 0, 0, 0, 0, 0, 0, 0, 255])
    )
    disk.need(pathlib.Path('.'), 10**15)


def test_nobody_writes_past_it():
    root = pathlib.Path(__file__).parents[3]
    sources = [*root.glob('*.py'), *root.glob('posenc_jax/**/*.py'), *root.glob('configs/**/*.py')]
    writes = re.compile(
        r'\.write_(text|bytes)\(|savefig\(|np\.save|json\.dump\(|open\([^)]*[\'"][wax]b?[\'"]'
    )
    found = {
        str(path.relative_to(root))
        for path in sources
        if writes.search(re.sub(r'>>> .*', '', path.read_text()))
    }
    # The other is called by `benchmarks/compile_kernels.py` alone.
    of_benchmarks = 'posenc_jax/attention/kernels/compiled.py'
    assert found == {'posenc_jax/lab/files/disk.py', of_benchmarks}
