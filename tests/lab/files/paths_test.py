"""Paths in buckets: what is refused, and how objects are written. A fake stands for `gs://`."""

import pathlib

import pytest

from posenc_jax.lab.files import disk, lock, paths
from posenc_jax.lab.files.command import Parser
from posenc_jax.lab.files.saved_steps import finished_steps
from posenc_jax.lab.pretrained import PretrainedError, is_pretrained
from posenc_jax.lab.runs.checkpoint import Checkpoints
from posenc_jax.lab.runs.run import resolve
from posenc_jax.lab.tasks.language.text_files import TextFiles
from tests import fake_bucket
from tests.lab.train import tiny


@pytest.fixture
def bucket(tmp_path):
    with fake_bucket.fake(tmp_path) as made:
        yield made


@pytest.mark.parametrize('text', ['runs/a', '/a//b', '~/a', 'C:/a', 'a:b', 'gs:b', ''])
def test_local_paths_are_those_of_pathlib(text):
    assert paths.path(text) == pathlib.Path(text) and paths.is_local(paths.path(text))


@pytest.mark.parametrize('text', ['gcs://b/a', 'http://b', 'gs:/b/a', 'gs://', 'gs:///a', 's3:/b'])
def test_other_schemes_and_missing_buckets_are_refused(text):
    with pytest.raises(ValueError) as caught:
        paths.path(text)
    expected = ': expected a local path, gs://BUCKET/PATH or s3://BUCKET/PATH'
    assert str(caught.value) == text + expected


@pytest.mark.parametrize(
    'text, asked',
    [
        ('gs://b/a', r"gcsfs and google-cloud-storage; pip install 'posenc_jax\[gcs\]'"),
        ('s3://b/a', r"s3fs; pip install 'posenc_jax\[s3\]'"),
    ],
)
def test_missing_packages_are_named(monkeypatch, text, asked):
    monkeypatch.setattr(paths, 'is_there', lambda module: False)
    with pytest.raises(ImportError, match=f'needs {asked}$'):
        paths.path(text)
    with pytest.raises(ImportError, match='pip install'):
        resolve(tiny.config('gs://there/runs'))


def test_commands_say_where_a_bucket_is_expected(bucket, capsys):
    parser = Parser('program')
    parser.add_argument('--out', type=paths.path)
    parser.add_argument('--workdir', type=pathlib.Path, default='runs')
    given = parser.parse_args(['--out=gs://there/a', '--workdir=b'])
    assert (str(given.out), given.workdir) == ('gs://there/a', pathlib.Path('b'))
    assert parser.parse_args([]).workdir == pathlib.Path('runs')
    for argument, said in (
        ('--out=ftp://a', 'expected a local path, gs://BUCKET/PATH'),
        ('--workdir=gs://there/a', 'expected a local path, got gs://there/a'),
    ):
        with pytest.raises(SystemExit):
            parser.parse_args([argument])
        assert said in capsys.readouterr().err


def test_checkpoints_go_to_buckets_of_google_alone(bucket):
    with pytest.raises(ValueError, match=r'^s3://b/run: checkpoints cannot be in such a bucket; '):
        Checkpoints('s3://b/run')
    with pytest.raises(ValueError, match=r'^s3://b/runs/a: checkpoints cannot be'):
        resolve(tiny.config('s3://b/runs', name='a'))


def test_an_object_is_written_whole_and_replaced(bucket):
    path = paths.path('gs://there/a/b.txt')
    disk.write(path, 'one')
    disk.write(path, 'two')
    disk.make_folder(path.parent / 'folder')
    disk.need(path, 10**18)
    assert path.read_text() == 'two' and [p.name for p in path.parent.iterdir()] == ['b.txt']
    assert disk.copy(path, path.with_name('c.txt')).read_text() == 'two'
    assert paths.size(path) == 3 and paths.absolute(path) == paths.resolved(path) == path


def test_an_object_that_is_not_a_lock_stays(bucket, capsys):
    path = paths.path('gs://there/run/training.lock')
    disk.write(path, 'of somebody')
    with pytest.raises(ValueError, match=rf'^{path} is not a lock file: it holds b.of somebody.'):
        with lock.hold(path, '', ''):
            pass
    assert path.read_text() == 'of somebody'
    disk.write(path, '{"process": 7, "host": "\\u001b[31m", "since": "b"}')
    with lock.hold(path, '', ''):
        pass
    (line,) = capsys.readouterr().out.splitlines()
    assert r'training.lock there names process 7 on \x1b[31m since b, which may' in line
    assert not path.exists()


def test_a_bucket_that_cannot_be_reached_is_one_line(bucket, monkeypatch):
    nowhere = paths.path('gs://nowhere/runs/a.txt')
    told = r'^gs://nowhere/runs/a.txt cannot be reached \(FileNotFoundError: [^\n]*; check the name'
    with pytest.raises(OSError, match=told):
        disk.write(nowhere, 'a')
    with pytest.raises(OSError, match=told), lock.hold(nowhere, '', ''):
        pass

    def forbidden(path):
        raise RuntimeError('Forbidden: no access\nand a second line')

    monkeypatch.setattr(bucket, 'isdir', forbidden)
    with pytest.raises(OSError, match=r'\(RuntimeError: Forbidden: no access\); check the name of'):
        is_pretrained('gs://there/model')


def test_pieces_are_written_from_time_to_time_and_at_the_end(bucket, monkeypatch):
    path, clock = paths.path('gs://there/log'), [0.0]
    disk.write(path, 'old\n')
    monkeypatch.setattr(disk.time, 'monotonic', lambda: clock[0])
    bucket.written.clear()
    file = disk.appended(path)
    for clock[0] in (1.0, 19.0):
        file.write(b'a\n')
    assert not bucket.written and path.read_text() == 'old\n'
    clock[0] = 20.0
    file.write(b'b\n')
    assert bucket.written == ['log'] and path.read_text() == 'old\na\na\nb\n'
    file.write(b'c\n')
    assert bucket.written == ['log']
    file.flush()
    file.flush()  # nothing waits
    file.write(b'd\n')
    file.close()
    assert bucket.written == 3 * ['log'] and path.read_text() == 'old\na\na\nb\nc\nd\n'


def test_a_lock_names_its_holder_and_refuses_nobody(bucket, capsys):
    path = paths.path('gs://there/run/training.lock')
    with lock.hold(path, 'it is trained', 'wait'):
        first = capsys.readouterr().out
        with lock.hold(path, 'it is trained', 'wait'):
            second = capsys.readouterr().out
    assert first == (
        'gs://there/run is in a bucket, which has no locks. Make sure that only one process writes '
        'there\n'
    )
    assert 'training.lock there names process ' in second and 'which may still run' in second
    assert not path.exists()
    lock.offer(path)
    assert not path.exists()
    with lock.sharing(path), lock.alone(path) as unread:
        assert unread


def test_unfinished_checkpoints_do_not_count(bucket):
    run = paths.path('gs://there/run')
    assert finished_steps(run) == []
    for name in ('2/commit_success.txt', '10/commit_success.txt', '4/model', '6.damaged/a', '08/a'):
        disk.write(run / 'checkpoints' / name, 'a')
    assert finished_steps(run) == [2, 10]


def test_public_checkpoints_are_read_from_local_folders(bucket):
    disk.write(paths.path('gs://there/model/config.json'), '{"model_type": "llama"}')
    for name in ('gs://there/model', 'gs://there/model.gguf'):
        with pytest.raises(PretrainedError, match=f'^{name} is in a bucket; copy '):
            is_pretrained(name)


def test_texts_of_a_bucket_are_split_as_local_ones(bucket, tmp_path):
    local = tmp_path / 'books'
    for number in range(40):
        text = f'text {number}\n' * 50
        disk.write(local / f'{number}.txt', text)
        disk.write(paths.path(f'gs://there/books/{number}.txt'), text)
    ours, theirs = TextFiles(str(local / '*.txt')), TextFiles('gs://there/books/*.txt')
    assert theirs.documents('train') == ours.documents('train')
    assert TextFiles('*.txt', 'gs://there/books').documents('test') == ours.documents('test')
    with pytest.raises(FileNotFoundError, match='no file matches'):
        TextFiles('gs://there/poems/*.txt')
    with pytest.raises(ValueError, match=r'has no \*\*$'):
        TextFiles('gs://there/**/*.txt')
