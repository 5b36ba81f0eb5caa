"""The file config.json of a run: what is written is read back, and what is wrong is one line."""

import json
import os
import subprocess
import sys

import pytest

from configs import default
from posenc_jax.lab.config.fields import fields_of
from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.run import validate
from tests.lab.train import tiny

BAD = {  # text of the file -> what the message says
    '{': 'is not a config',
    '[1]': 'it holds a list',
    '{}': 'it holds no field',
    '{"train": {"stepz": 3, "lr": 0.1}, "colour": 1}': (
        r"does not know: 'colour'; 'train.stepz' \(did you mean 'train.steps'\?\)$"
    ),
    '{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1}': "'f'; and 1 more$",
    '{"train": 3}': 'train is 3, expected an object of fields',
    '{"train": {"steps": "many"}}': "train.steps is 'many', expected a whole number",
    '{"train": {"steps": true}}': 'train.steps is True, expected a whole number',
    '{"train": {"steps": 1.0}}': 'train.steps is 1.0, expected a whole number',
    '{"train": {"steps": null}}': 'train.steps is None, expected a whole number',
    '{"train": {"steps": 1%s}}' % ('0' * 30): (
        'train.steps is 10+, expected a whole number below 2[*]{2}63'
    ),
    '{"train": {"steps": 1%s}}' % ('0' * 5000): 'is not a config: Exceeds the limit',
    '{"train": {"lr": NaN}}': 'train.lr is nan, expected a finite number',
    '{"train": {"lr": 1e999}}': 'train.lr is inf, expected a finite number',
    '{"model": {"tie": 1}}': 'model.tie is 1, expected true or false',
    '{"encoding": ["rope()"]}': r"encoding is \['rope\(\)'\], expected a string",
    '{"pattern": "rope()"}': r"pattern is 'rope\(\)', expected a list",
    '{"pattern": ["rope()", 3]}': r'pattern\[1\] is 3, expected a string',
    '{"eval": {"lengths": [[64]]}}': r'eval.lengths\[0\] is \[64\], expected a whole number',
    '{"seed": 1, "task_shape": [3]}': (
        r'task_shape is \[3\], expected an object with the positive numbers vocab_size and width'
    ),
    '{"seed": 1, "task_shape": {"vocab_size": 3}}': r"task_shape is \{'vocab_size': 3\}, expected",
    '{"seed": 1, "task_shape": {"vocab_size": 3, "width": "x"}}': (
        "task_shape.width is 'x', expected a whole number"
    ),
    '{"seed": 1, "task_shape": {"vocab_size": 3, "width": 0}}': (
        'expected an object with the positive numbers'
    ),
    '{"seed": 1, "task_shape": null}': 'task_shape is None, expected an object',
    '{"seed": 1, "resumed_changed": 3}': 'resumed_changed is 3, expected a list',
    '{"seed": 1, "seed": 2}': "the name 'seed' appears 2 times in one object",
    '{"a":' * 10_000: 'its lists or objects are nested too deeply',
    '{"pattern": ' + '[' * 10_000 + ']' * 10_000 + '}': (
        'its lists or objects are nested too deeply'
    ),
    '{"pattern": ' + '[' * 900 + ']' * 900 + '}': r'pattern\[0\] is .*, expected a string',
    '{"seed": 1}' + ' ' * 2**20: 'it has 1048587 bytes, expected at most 1048576',
    '\0' * 100: 'is not a config',
    '': 'is not a config',
}


@pytest.mark.parametrize('text', BAD)
def test_bad_json(tmp_path, text):
    path = tmp_path / 'config.json'
    path.write_text(text)
    with tiny.refused(f'^{path}.*{BAD[text]}', longest=1000):
        stored.read_saved(path)


def test_json_round_trip(tmp_path):
    config = validate(tiny.config(tmp_path, pattern=('alibi()', 'nope()'), eval__lengths=(8, 16)))
    stored.save(config, tmp_path / 'config.json')
    read = stored.from_json(tmp_path / 'config.json')
    assert fields_of(read) == fields_of(config)
    assert read.is_locked


def test_files_that_are_no_text(tmp_path):
    path = tmp_path / 'config.json'
    path.write_bytes(b'{"seed": 1, "task": "\xff"}')
    with pytest.raises(ValueError, match=f'{path} is not a config: .*utf-8'):
        stored.from_json(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=f'{path} is not a config: it is not a file'):
        stored.from_json(path)
    path.rmdir()
    os.mkfifo(path)  # where reading would wait for ever
    with pytest.raises(ValueError, match=f'{path} is not a config: it is not a file'):
        stored.from_json(path)


def test_the_kinds_of_lists_are_known():
    lists = {
        name for name, value in fields_of(default.get_config()).items() if isinstance(value, tuple)
    }
    assert lists == stored.ITEMS.keys()


def test_numbers_keep_their_types(tmp_path):
    path = tmp_path / 'config.json'
    path.write_text('{"train": {"lr": 1}, "eval": {"lengths": [8, 16], "depths": [0, 0.5]}}')
    read = stored.from_json(path)
    assert (read.train.lr, read.eval.lengths, read.eval.depths) == (1.0, (8, 16), (0.0, 0.5))
    assert type(read.train.lr) is float


def test_stages_of_a_pyramid_are_read_back_as_tuples(tmp_path):
    path, stages = tmp_path / 'config.json', ((1, 16, 2, 4, 'nope()'), (2, 32, 2, 2, 'nope()'))
    config = default.get_config()
    config.model.lower = stages
    path.write_text(json.dumps(config.to_dict()))
    assert stored.from_json(path).model.lower == stages
    for wrong, found in (('[1, 16, 2, 4]', 'a list of 5 items'), ('[1, 16, 2, 4, 2]', 'a string')):
        path.write_text(f'{{"model": {{"lower": [[1, 16, 2, 4, "nope()"], {wrong}]}}}}')
        with pytest.raises(ValueError, match=rf'model.lower\[1\].* expected {found}'):
            stored.from_json(path)


def test_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not the directory of a run'):
        stored.from_json(tmp_path / 'config.json')


def test_differences_name_what_changes_training(tmp_path):
    old = tiny.config(tmp_path)
    new = tiny.config(
        tmp_path / 'else', train__lr=0.5, mesh__fsdp=2, eval__batch=1, train__save_every=7,
        model__implementation='kernel', model__block=16, model__remat='full',
    )  # fmt: skip
    assert stored.differences(old, new) == ['train.lr: 0.01 -> 0.5']
    # Checkpoints of earlier versions hold these fields.
    assert stored.changes({'model.implementation': 'kernel'}, {}) == {}
    bound = stored.saved_of(old).bound
    assert not bound.keys() & {
        'name',
        'workdir',
        'mesh.fsdp',
        'eval.batch',
        'train.save_every',
        'extend',
    }
    assert bound['task_shape.width'] == 32 and bound['model.epsilon'] == 1e-6


def test_a_config_is_read_where_only_the_package_is_installed(tmp_path):
    stored.save(tiny.config(tmp_path), tmp_path / 'config.json')
    (tmp_path / 'posenc_jax').symlink_to(tiny.ROOT / 'posenc_jax')
    code = '\n'.join(
        [
            'import importlib.util, pathlib',
            'from posenc_jax.lab.runs import stored',
            "saved = stored.read_saved(pathlib.Path('config.json'))",
            'assert saved.model_config.vocab_size == 257',
            "assert importlib.util.find_spec('configs') is None",
        ]
    )
    subprocess.run([sys.executable, '-c', code], cwd=tmp_path, check=True)


def test_fields_of_later_versions_have_their_defaults(tmp_path):
    config = tiny.config(tmp_path)
    fields = json.loads(json.dumps(config.to_dict()))
    del fields['train']['z_loss'], fields['mesh'], fields['eval']['buckets']
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    read = stored.from_json(tmp_path / 'config.json')
    assert fields_of(read) == fields_of(config)
    assert stored.differences(read, config) == []
