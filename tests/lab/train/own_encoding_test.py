"""A run with an encoding of one's own is read where the file does not exist."""

import json

import pytest

from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.runs.run import resolve
from posenc_jax.lab.runs.trust import UntrustedError
from posenc_jax.lab.train.loop import ConfigChangedError, train
from tests.lab.train.tiny import config
from tests.own_modules import forget, own, write  # noqa: F401  (a fixture)


def test_a_config_stores_the_copies_that_it_imports(tmp_path):
    write(tmp_path / 'own_root.py')
    asked = config(tmp_path, encoding='own_root()', imports=(str(tmp_path / 'own_root.py'),))
    stored.save(resolve(asked).config, tmp_path / 'run' / stored.FILE)
    (name,) = stored.from_json(tmp_path / 'run' / stored.FILE).imports
    assert (tmp_path / 'run' / 'imports' / name).is_file()
    again = config(tmp_path, encoding='own_root()', imports=(name,))
    assert resolve(again).config.imports == (name,)
    with pytest.raises(ValueError, match="no module 'own_rot'"):
        resolve(config(tmp_path, encoding='own_root()', imports=('own_rot',)))


@pytest.mark.full
def test_a_run_imports_the_module_that_it_was_trained_with(tmp_path, monkeypatch):
    file = tmp_path / 'own_root.py'
    write(file)
    fields = dict(encoding='own_root()', name='own', imports=(str(file),), model__layers=1)
    asked = config(tmp_path / 'runs', **fields, train__steps=1, train__warmup=0)
    run = train(asked)
    (name,) = stored.from_json(run / stored.FILE).imports
    assert (run / 'imports' / name).read_bytes() == file.read_bytes()

    write(file, number=2)
    forget()
    with pytest.raises(ConfigChangedError, match=r"imports: \('own_root-\w+\.py',\) -> \('own_ro"):
        train(asked)

    file.unlink()
    forget()
    moved = run.rename(tmp_path / 'elsewhere')
    monkeypatch.chdir(moved)
    with pytest.raises(UntrustedError, match=r'own_root\.py \(sha256 '):
        restore_model('.')
    read, model, step = restore_model('.', trust_imports=True)
    assert (read.encoding, step, model.shared[0].number) == ('own_root()', 1, 1)


@pytest.mark.full
def test_a_resumed_run_executes_what_the_command_names_alone(tmp_path):
    fields = dict(name='own', train__steps=1, train__warmup=0, model__layers=1)
    mine = dict(encoding='own_root()', imports=(write(tmp_path / 'own_root.py'),))
    run = train(config(tmp_path / 'runs', **fields, **mine))
    (name,) = stored.from_json(run / stored.FILE).imports
    for path in (run / 'imports' / name, run / 'imports' / 'own_other.py'):
        path.write_text('raise SystemExit("executed")')
    forget()
    assert train(config(tmp_path / 'runs', **fields, **mine)) == run  # and the copy is good again
    assert (run / 'imports' / name).read_bytes() == (tmp_path / 'own_root.py').read_bytes()

    content = json.loads((run / stored.FILE).read_text())
    content['imports'] = ['own_other', 'imports/own_other.py']
    (run / stored.FILE).write_text(json.dumps(content))
    for more in (mine, {}):
        forget()
        with pytest.raises(ConfigChangedError, match='imports: '):
            train(config(tmp_path / 'runs', **fields, **more))
