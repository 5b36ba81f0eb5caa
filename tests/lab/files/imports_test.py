"""Modules of one's own: how they are named, when they are executed, and wrong ones."""

import re
import sys

import pytest

from posenc_jax.lab.files.command import Parser
from posenc_jax.lab.files.imports import LARGEST, load, store, stored_name
from posenc_jax.protocol import registry
from tests.lab.train import tiny
from tests.own_modules import TEXT, forget, found, own, write  # noqa: F401  (a fixture)


def test_a_run_keeps_a_copy(tmp_path):
    file, run = tmp_path / 'own_root.py', tmp_path / 'run'
    (name,) = load([write(file)])
    assert name.startswith('own_root-') and found().__module__ == 'own_root'
    first = found()
    assert load([str(file), name]) == (name,) and found() is first  # executed once
    store([name, 'posenc_jax.methods.alibi'], run)
    assert [p.name for p in (run / 'imports').iterdir()] == [name]
    (run / 'imports' / name).write_text('damaged')
    store([name], run)
    forget()
    assert stored_name(name) is None
    assert load([str(run / 'imports' / name)]) == (name,) and found().number == 1
    assert stored_name(name) == stored_name('own_root.py') == name
    assert stored_name('own_root-0123456789ab.py') is stored_name('own_other.py') is None


def test_another_text_has_another_name(tmp_path):
    (one,) = load([write(tmp_path / 'own_root.py')])
    write(tmp_path / 'own_root.py', number=2)
    with pytest.raises(ValueError, match=r'own_root\.py: this process has imported own_root\.py w'):
        load([str(tmp_path / 'own_root.py')])
    forget()
    (two,) = load([str(tmp_path / 'own_root.py')])
    assert one != two and found().number == 2


def test_a_module_that_is_imported_already_is_the_same(tmp_path, monkeypatch):
    write(tmp_path / 'own_root.py')
    monkeypatch.syspath_prepend(tmp_path)
    assert stored_name('own_root') is None
    assert load(['own_root']) == ('own_root',) == (stored_name('own_root'),)
    first = found()
    (name,) = load([str(tmp_path / 'own_root.py')])
    assert name.startswith('own_root-') and found() is first


def test_a_failed_import_leaves_nothing_behind(tmp_path):
    file = tmp_path / 'own_root.py'
    write(file, TEXT + '\nraise RuntimeError("two\\nlines")\n')
    expected = rf'{file} cannot be imported: line 8: RuntimeError: two\nlines'
    with tiny.refused(f'^{re.escape(expected)}$'):
        load([str(file)])
    assert ('encoding', 'own_root') not in registry._ENTRIES and 'own_root' not in sys.modules
    load([write(file)])


WRONG = {  # text of a file -> what the message says
    'x = 1': r'own_root\.py registers nothing; expected a class under @posenc_jax\.register',
    'def': r'cannot be imported: line 1: SyntaxError: ',
    'import no_such_module': r'line 1: ModuleNotFoundError: No module named .*no_such_module',
    'raise SystemExit(3)': r'own_root\.py cannot be imported: line 1: SystemExit: 3',
    TEXT.replace("'own_root'", "'rope'"): (
        r'line 4: ValueError: encoding .*rope.* is registered already, by '
        r'posenc_jax\.methods\.rope\.Rotary; register own_root\.Root under another name'
    ),
}


@pytest.mark.parametrize('text', WRONG)
def test_wrong_files_get_one_line(tmp_path, text):
    with tiny.refused(WRONG[text]):
        load([write(tmp_path / 'own_root.py', text)])


def test_wrong_names_are_refused(tmp_path, monkeypatch):
    write(tmp_path / 'own_root.py')
    with tiny.refused(r'own_rot\.py does not exist; did you mean .*own_ro', FileNotFoundError):
        load([str(tmp_path / 'own_rot.py')])
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / 'own_long.py').write_bytes(b'#' * (LARGEST + 1))
    write(tmp_path / 'own_\x1b[31m.py')
    for name, said in (
        ('own_rot', "there is no module 'own_rot'; did you mean 'own_root'?"),
        ('a.b.c', "no module 'a.b.c'; expected the dotted name of an insta"),
        ('a b', "the dotted name of a module or the path .*, got 'a b'"),
        ('json', 'json registers nothing'),
        (str(tmp_path / 'own_long.py'), 'own_long.py has more than 1 MiB'),
        (
            str(tmp_path / 'own_\x1b[31m.py'),
            r"x1b\[31m\.py' has no name that a run can store; rename it",
        ),
    ):
        with tiny.refused(said):
            load([name])
    assert stored_name('json') is stored_name('os') is None
    for name in ('json', 'colorsys'):  # imported, and not imported, of the standard library
        with pytest.raises(ValueError, match=f"has the name of another module, '{name}'; rename"):
            load([write(tmp_path / f'{name}.py')])


def test_programs_take_the_argument(tmp_path, capsys):
    parser = Parser('program')
    parser.add_imports()
    assert vars(parser.parse_args([f'--import={write(tmp_path / "own_root.py")}'])) == {}
    assert found().number == 1
    with tiny.stopped():
        parser.parse_args(['--import=own_missing.py'])
    assert capsys.readouterr().err.startswith('program: error: --import: own_missing.py does not e')
