"""Tests of the command that writes the notebooks of the package into a folder."""

import pathlib

from posenc_jax.lab.cli import notebooks

FOLDER = pathlib.Path(__file__).parents[3] / 'notebooks'


def test_all_notebooks_are_written_as_they_are(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert notebooks.main([]) == 0
    found = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert found == {path.name: path.read_bytes() for path in FOLDER.glob('*.ipynb')}
    assert capsys.readouterr().out.split() == sorted(found)


def test_one_notebook_into_a_folder_and_no_file_is_overwritten(tmp_path, capsys):
    out = tmp_path / 'new'
    assert notebooks.main(['compare', f'--out={out}']) == 0
    assert [path.name for path in out.iterdir()] == ['compare.ipynb']
    (out / 'compare.ipynb').write_text('mine')
    capsys.readouterr()
    assert notebooks.main([f'--out={out}']) == 2
    line = f'posenc_jax.lab.cli.notebooks: {out}/compare.ipynb exists already; give another folder'
    assert capsys.readouterr().err == f'{line} by --out=DIR\n'
    assert [path.read_text() for path in out.iterdir()] == ['mine']


def test_an_unknown_notebook_is_refused_with_the_nearest(tmp_path, capsys):
    assert notebooks.main(['atention', f'--out={tmp_path}']) == 2
    said = "the notebook is 'atention'; did you mean 'attention'?\n"
    assert capsys.readouterr().err == f'posenc_jax.lab.cli.notebooks: {said}'
