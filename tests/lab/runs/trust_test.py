"""Runs of unknown origin: nothing that they bring is executed, unless the caller says so."""

import contextlib
import hashlib
import importlib
import json
import os
import pathlib
import re
import shutil
import sys

import jax
import pytest

import posenc_jax
from configs import default
from posenc_jax.lab.analyse import __main__ as analysis
from posenc_jax.lab.cli import eval as evaluation
from posenc_jax.lab.cli import generate
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.files import imports, paths
from posenc_jax.lab.longrope_search.search import search
from posenc_jax.lab.runs import stored, trust
from posenc_jax.lab.runs.checkpoint import CheckpointError, Checkpoints
from posenc_jax.lab.runs.initial import open_initial
from posenc_jax.lab.runs.prepare import prepare
from posenc_jax.lab.runs.restore import read_run, restore_model
from posenc_jax.lab.runs.run import Run
from posenc_jax.lab.runs.trust import UntrustedError, import_of_run
from posenc_jax.lab.train.loop import train
from posenc_jax.lab.train.step import make_trainer
from posenc_jax.layer.sharding import make_mesh
from tests import fake_bucket
from tests.lab.evaluate.run_test import make_run
from tests.lab.train import tiny
from tests.own_modules import TEXT, found, own  # noqa: F401  (a fixture)

# What a run brings: it registers an encoding, and tells the test that it was executed.
PAYLOAD = TEXT.replace('{number}', '1') + '\nimport builtins\nbuiltins.own_payload_was_executed()\n'
DIGEST = hashlib.sha256(PAYLOAD.encode()).hexdigest()
COPY = f'own_root-{DIGEST[:12]}.py'


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp('plain') / 'run', encoding='rope()')


@pytest.fixture
def executed(monkeypatch):
    """The calls of the payload."""
    calls = []
    monkeypatch.setattr('builtins.own_payload_was_executed', lambda: calls.append(1), raising=False)
    return calls


@pytest.fixture
def brought(plain, tmp_path, monkeypatch):
    """A function that makes a run which imports given modules, of the encoding of the payload. The
    payload lies in the working directory, where `python -m` looks for modules, and in the run.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    def make(*names, encoding='own_root()') -> pathlib.Path:
        run = tmp_path / 'runs' / 'hostile'
        shutil.copytree(plain, run)
        content = json.loads((run / stored.FILE).read_text())
        content |= {'imports': names, 'encoding': encoding}
        (run / stored.FILE).write_text(json.dumps(content))
        (run / 'imports').mkdir()
        for place in (tmp_path, run, run / 'imports'):
            for name in ('own_root.py', COPY):
                (place / name).write_text(PAYLOAD)
        return run

    return make


# Of Python: what a module can execute with, or unpickle.
EXECUTING = (
    r'(?<![\w.])(eval|exec|compile|__import__)\(|import_module\(|allow_pickle=True|os\.system|'
    r'import (runpy|c?pickle|cloudpickle|dill|marshal|shelve|joblib|yaml)|'
    r'jinja2\.(Environment|Template)\('
)

NAMES = {
    'in the working directory': 'own_root',
    'in the run': 'runs.hostile.own_root',
    'installed': 'antigravity',
    'imported already': 'os',
    'one folder up': '../own_root.py',
    'a copy one folder up': f'../{COPY}',
    'a copy through the folder': f'../imports/{COPY}',
    'a copy in a folder': f'x/{COPY}',
    'another separator': f'..\\{COPY}',
    'hidden': f'.{COPY}',
    'absolute': f'/tmp/{COPY}',
    'without a digest': 'own_root.py',
    'with letters that are no digest': 'own_root-0123456789AB.py',
    'with an escape code': f'own\x1b[31m-{DIGEST[:12]}.py',
    'of two lines': 'own_root\nos',
    'empty': '',
    'the folder': '.',
    'a name of Python': '__main__',
    'long': 'x' * 100_000 + f'-{DIGEST[:12]}.py',
}


@pytest.mark.parametrize('trusted', [False, True])
@pytest.mark.parametrize('name', NAMES.values(), ids=NAMES.keys())
def test_only_copies_with_a_digest_are_ever_imported(brought, executed, name, trusted):
    run, before = brought(name), set(sys.modules)
    with tiny.refused('names .* in its imports, which is', longest=500):
        read_run(run, trust_imports=trusted)
    assert not executed and set(sys.modules) == before and 'antigravity' not in sys.modules


def test_a_message_says_how_a_module_is_given(brought, executed):
    for name, way in (
        ('own_root', 'if you know this module, import it yourself with --import=own_root$'),
        ('own_root.py', r'give the file yourself with --import=FILE\.py$'),
        ('a b', "names 'a b' in its imports, which is no name of a module$"),
    ):
        with pytest.raises(ValueError, match=way):
            import_of_run('runs/hostile', [name])
    assert not executed


def linked(copy):
    copy.unlink()
    copy.symlink_to(copy.parents[1] / COPY)


def linked_folder(copy):
    shutil.rmtree(copy.parent)
    copy.parent.symlink_to(copy.parents[1])


def dangling(copy):
    (copy.parents[1] / COPY).unlink()
    linked(copy)


def pipe(copy):
    copy.unlink()
    os.mkfifo(copy)


def folder(copy):
    copy.unlink()
    copy.mkdir()


HARM = {  # what is done to the copy -> what the message says
    linked: f'{COPY} is a link; expected the file that training wrote',
    linked_folder: 'imports is a link',
    dangling: f'{COPY} is a link',
    pipe: f'{COPY} is a pipe, expected a regular file',
    folder: f'{COPY} is a folder, expected a regular file',
    lambda copy: copy.write_text(PAYLOAD + '#'): (
        f'{COPY} was changed: its name has the digest of another text'
    ),
    lambda copy: copy.write_bytes(b'#' * (imports.LARGEST + 1)): f'{COPY} has more than 1 MiB',
    pathlib.Path.unlink: (
        r'does not exist; the run defines .* Give the file with --import=own_root\.py$'
    ),
}


@pytest.mark.parametrize('trusted', [False, True])
@pytest.mark.parametrize('harm', HARM)
def test_a_copy_is_a_file_with_its_own_text(brought, executed, harm, trusted):
    run = brought(COPY)
    harm(run / 'imports' / COPY)
    with tiny.refused(HARM[harm], FileNotFoundError if harm is pathlib.Path.unlink else ValueError):
        read_run(run, trust_imports=trusted)
    assert not executed


@pytest.mark.parametrize('trusted', [False, True])
def test_a_link_that_takes_the_place_of_a_copy_is_not_followed(
    brought, executed, monkeypatch, trusted
):
    run = brought(COPY)
    monkeypatch.setattr(pathlib.Path, 'is_symlink', lambda path: False)
    linked(run / 'imports' / COPY)
    with pytest.raises(ValueError, match='symbolic link, expected a regular file'):
        read_run(run, trust_imports=trusted)
    assert not executed


def test_what_is_executed_are_the_bytes_whose_digest_was_compared(brought, executed, monkeypatch):
    run, show = brought(COPY), trust._show

    def shown(*given):  # between the comparison and the execution
        show(*given)
        (run / 'imports' / COPY).write_text('raise SystemExit(7)')

    monkeypatch.setattr(trust, '_show', shown)
    assert restore_model(run, trust_imports=True)[1].shared[0].number == 1
    assert executed == [1]


def doors(run):
    run, at = str(run), {'eval.lengths': (16,), 'eval.tokens': 32}
    config = default.get_config()
    config.init.source, config.workdir, config.train.steps = run, f'{run}/../new', 1
    return {
        'restore_model': lambda **more: restore_model(run, **more),
        'read_run': lambda **more: read_run(run, **more),
        'prepare': lambda **more: prepare(run, at, **more),
        'evaluate': lambda **more: evaluate([run], at, **more),
        'continue_text': lambda **more: generate.continue_text(run, ['x'], tokens=1, **more),
        'open_initial': lambda **more: open_initial(run, **more),
        'search': lambda **more: search(run, 32, **more),
        'train': lambda **more: train(config, **more),
    }


@pytest.mark.parametrize('door', doors('x'))
def test_reading_a_run_executes_nothing(brought, executed, door, capfd):
    run = brought(COPY)
    read, before = doors(run)[door], set(sys.modules)
    with pytest.raises(UntrustedError) as error:
        read()
    assert not executed and 'own_root' not in set(sys.modules) - before
    assert ('encoding', 'own_root') not in posenc_jax.protocol.registry._ENTRIES
    message = str(error.value)
    assert f'own_root.py (sha256 {DIGEST[:16]})' in message and '\n' not in message
    assert '--trust-imports' in message and 'trust_imports=True' in message
    assert 'own_root' not in capfd.readouterr().err


@pytest.mark.parametrize('door', ['restore_model', 'prepare', 'continue_text', 'open_initial'])
def test_a_trusted_run_says_first_what_it_executes(brought, executed, door, capfd):
    run = brought(COPY)
    doors(run)[door](trust_imports=True)
    assert executed == [1] and found().number == 1
    first = f'{run} imports own_root.py (sha256 {DIGEST[:16]}, executed from its folder imports/)'
    assert capfd.readouterr().err.splitlines()[0] == first


def programs(run):
    at, out = ['--config.eval.lengths=16', '--config.eval.tokens=32'], f'--out={run.parent}/out'
    return {
        'eval': lambda *more: evaluation.main([f'--run={run}', out, *at, *more]),
        'generate': lambda *more: generate.main(
            [f'--run={run}', '--prompt=x', '--tokens=1', *more]
        ),
        'analysis': lambda *more: analysis.main(
            ['variance_shrinkage', f'--run={run}', '--batches=2', out, *more]
        ),
        'analyses': lambda *more: analysis.main(
            ['receptive_field', f'--runs={run}', '--batches=1', out, *more]
        ),
    }


@pytest.mark.parametrize('program', ['eval', 'generate', 'analysis', 'analyses'])
def test_programs_ask_for_the_word(brought, executed, program, capfd):
    run = brought(COPY)
    assert programs(run)[program]() == 2 and not executed
    out, err = capfd.readouterr()
    assert not out and err.count('\n') == 1 and f'own_root.py (sha256 {DIGEST[:16]})' in err


@pytest.mark.parametrize('program', ['generate', 'analysis'])
def test_programs_take_the_word(brought, executed, program, capfd):
    assert programs(brought(COPY))[program]('--trust-imports') == 0 and executed == [1]
    assert capfd.readouterr().err.splitlines()[0].endswith('executed from its folder imports/)')


def test_a_module_that_was_given_serves_in_the_place_of_a_copy(brought, executed, capfd):
    run = brought(COPY)
    imports.load(['own_root.py'])  # of the working directory, as --import=own_root.py
    shutil.rmtree(run / 'imports')
    assert restore_model(run)[1].shared[0].number == 1 and executed == [1]
    assert f'{run} imports own_root.py (sha256 {DIGEST[:16]}, given)' in capfd.readouterr().err


def test_a_module_that_python_has_imported_serves_too(brought, executed):
    run = brought(COPY)
    importlib.import_module('own_root')
    assert restore_model(run)[1].shared[0].number == 1 and executed == [1]


def test_copies_in_a_bucket(executed, tmp_path):
    with fake_bucket.fake(tmp_path) as made:
        bucket = made.root / 'there' / 'run' / 'imports'
        bucket.mkdir(parents=True)
        for text in (PAYLOAD + '#', 'x' * (imports.LARGEST + 1)):
            (bucket / COPY).write_text(text)
            with pytest.raises(ValueError, match='was changed|has more than 1 MiB'):
                import_of_run('gs://there/run', [COPY], trust_imports=True)
        (bucket / COPY).write_text(PAYLOAD)
        with pytest.raises(UntrustedError, match=DIGEST[:16]):
            import_of_run('gs://there/run', [COPY])
        assert not executed
        assert import_of_run('gs://there/run', [COPY], trust_imports=True) == (COPY,)
        imports.store([COPY], paths.path('gs://there/other'))
        assert (made.root / 'there' / 'other' / 'imports' / COPY).read_text() == PAYLOAD
    assert executed == [1]


def test_a_module_of_another_text_does_not(brought, executed):
    run = brought(COPY)
    pathlib.Path('own_root.py').write_text(PAYLOAD + '#')
    imports.load(['own_root.py'])
    for trusted in (False, True):
        with pytest.raises(ValueError, match=rf'another text .* this one has {DIGEST[:16]}\);'):
            read_run(run, trust_imports=trusted)
    assert executed == [1]


@pytest.mark.parametrize('name', ['own_root.py', '/elsewhere/own_root.py', 'own_root'])
def test_a_run_without_digests_is_read_with_the_module_given(brought, executed, name):
    run = brought(name)
    imports.load(['own_root' if name == 'own_root' else 'own_root.py'])
    assert restore_model(run)[1].shared[0].number == 1 and executed == [1]
    source = open_initial(str(run))
    assert source.imports == (name if name == 'own_root' else COPY,)


def test_modules_of_the_package_need_no_trust(brought):
    run = brought('posenc_jax.methods.alibi', encoding='rope()')
    assert restore_model(run)[0].imports == ('posenc_jax.methods.alibi',)


@pytest.mark.parametrize('door', ['restore_model', 'read_run'])
def test_the_config_is_compared_before_anything_is_executed(plain, brought, executed, door):
    run = brought(COPY)
    trained = stored.from_json(pathlib.Path(plain) / stored.FILE)
    trainer = make_trainer(Run.of(trained), make_mesh(devices=jax.devices()[:1]))
    with Checkpoints(run, keep=1, saved=stored.saved_of(trained)) as checkpoints:
        checkpoints.save(3, trainer.init({}), {})
    with pytest.raises(CheckpointError, match='was trained with another config than config.json'):
        doors(run)[door](trust_imports=True)
    assert not executed


def test_the_files_of_a_checkpoint_name_no_code_that_is_executed(brought, executed):
    """Orbax writes names of Python classes into its files; reading them imports no such module."""
    run, before = brought(encoding='rope()'), set(sys.modules)
    files = [p for p in (run / 'checkpoints').rglob('_*') if 'orbax.checkpoint' in p.read_text()]
    for file in files:
        file.write_text(re.sub(r'orbax\.checkpoint[\w.]*\.', 'own_root.', file.read_text()))
    assert files and any('own_root.' in file.read_text() for file in files)
    with contextlib.suppress(ValueError):  # it may also be called damaged
        restore_model(run)
    assert not executed and 'own_root' not in set(sys.modules) - before


def test_only_few_modules_can_execute_what_they_read():
    """All others neither evaluate texts nor unpickle. The exceptions execute what the user names,
    or what `trust` allows; chat templates run in a sandbox.
    """
    root = pathlib.Path(posenc_jax.__file__).parent
    executing = {
        path.relative_to(root).as_posix()
        for path in root.rglob('*.py')
        if re.search(EXECUTING, path.read_text())
    }
    assert executing == {
        '__init__.py',  # its own packages
        'console.py',  # a program of lab
        'protocol/index.py',  # its own modules
        'protocol/lazy.py',
        'testing/__main__.py',
        'lab/files/imports.py',
        'lab/config/config_file.py',  # the file of --config
        'lab/tasks/language/embedded.py',  # the topics of Python
    }
