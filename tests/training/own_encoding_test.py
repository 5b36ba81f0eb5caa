"""A run with an encoding of one's own is read where the file does not exist."""

import pytest

from posenc_jax.run import stored
from posenc_jax.run.plan import resolve
from posenc_jax.run.restore import restore_model
from posenc_jax.training.loop import ConfigChangedError, train
from tests.own_modules import forget, own, write  # noqa: F401  (a fixture)
from tests.training.tiny import config


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
    asked = config(
        tmp_path / 'runs',
        encoding='own_root()',
        name='own',
        imports=(str(file),),
        train__steps=1,
        train__warmup=0,
        model__layers=1,
    )
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
    read, model, step = restore_model('.')
    assert (read.encoding, step, model.shared[0].number) == ('own_root()', 1, 1)
