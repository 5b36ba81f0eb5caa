"""Wrong input is found before any device work; configs survive the file they are kept in."""

import json
import subprocess
import sys

import pytest

from configs import default
from posenc_jax.core.registry import SpecError
from posenc_jax.training import config as configs
from tests.training import tiny


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(encoding='alibbi()'), "unknown encoding 'alibbi'; did you mean 'alibi'"),
        (dict(encoding='alibi(slops=2)'), 'alibi has no argument .*signature'),
        (dict(pattern=('alibi()', 'nopee()')), "unknown encoding 'nopee'; did you mean 'nope'"),
        (dict(task='adition()'), "unknown task 'adition'; did you mean 'addition'"),
        (dict(task='copy() | reverse()'), 'cannot be joined'),
        (dict(data__dataset='pydoc_topic'), "unknown dataset 'pydoc_topic'; did you mean 'pydoc_topics'"),
        (dict(data__packing='streams'), "packing is 'streams'; did you mean 'stream'"),
        (dict(model__norm='layer_norm'), "norm is 'layer_norm'; did you mean 'layernorm'"),
        (dict(model__heads=3), 'width 16 is not a multiple of 3 heads'),
        (dict(model__kv_heads=3), '4 heads are not a multiple of 3 kv_heads'),
        (dict(train__steps=0), 'train.steps must be at least 1, got 0'),
        (dict(train__warmup=25), 'train.warmup must be at most train.steps = 24, got 25'),
        (dict(train__batch=9, train__accumulate=2), 'train.batch must be a multiple of train.accumulate = 2, got 9'),
        (dict(train__lr=-1.0), 'train.lr must be positive'),
        (dict(seed=-1), 'seed must be between 0 and 4294967295, got -1'),
        (dict(eval__split='dev'), "eval.split is 'dev'"),
        (dict(eval__lengths=(0,)), r'eval.lengths must be whole numbers of at least 1, got \(0,\)'),
        (dict(mesh__cpu_devices=-1), 'mesh.cpu_devices must be at least 0'),
        (dict(eval__at_end=True), 'eval.stride is 64; it must be between 1 and the shortest length, 32'),
        (dict(name='../there'), 'name is a folder within workdir'),
    ],
)
def test_wrong_fields(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        configs.validate(tiny.config(tmp_path, **fields))


def test_missing_text(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file matches'):
        configs.validate(tiny.config(tmp_path, data__dataset='text:*.txt', data__data_dir=str(tmp_path)))


def test_no_device_is_touched(tmp_path):
    code = '\n'.join([
        'import jax._src.xla_bridge as bridge',
        'from posenc_jax.training import config as configs',
        'from tests.training import tiny',
        f'configs.validate(tiny.config({str(tmp_path)!r}))',
        'assert not bridge.backends_are_initialized()',
        'import jax; jax.devices()',
        'assert bridge.backends_are_initialized()',
    ])
    subprocess.run([sys.executable, '-c', code], cwd=tiny.ROOT, check=True)


def test_validate_leaves_its_argument_alone(tmp_path):
    config = tiny.config(tmp_path)
    made = configs.validate(config)
    assert config.name == ''
    assert made.name == 'language-pydoc_topics-learned_absolute-max_len-32-alibi-s0'
    with pytest.raises(AttributeError):
        made.train.stepz = 1


@pytest.mark.parametrize(
    'fields, name',
    [
        (dict(encoding='alibi()', seed=3), 'language-pydoc_topics-alibi-s3'),
        (dict(encoding='alibi()', task="language(dataset='stdlib_code')"), 'language-dataset-stdlib_code-alibi-s0'),
        (dict(pattern=('alibi()', 'nope()'), task='copy()'), 'copy-alibi-nope-s0'),
    ],
)
def test_run_name(tmp_path, fields, name):
    assert configs.run_name(tiny.config(tmp_path, **fields)) == name


def test_task_arguments_come_from_the_string_first(tmp_path):
    config = tiny.config(tmp_path, task="language(packing='documents')", data__packing='stream')
    assert configs.make_task(config).packing == 'documents'
    config = tiny.config(tmp_path, data__packing='documents')
    assert configs.make_task(config).packing == 'documents'


def test_train_len_is_the_width_of_a_batch(tmp_path):
    config = tiny.config(tmp_path, task='addition()', train__length=5)
    assert configs.model_config(config, configs.make_task(config)).train_len == 19
    config = tiny.config(tmp_path)
    assert configs.model_config(config, configs.make_task(config)).train_len == 32


def test_json_round_trip(tmp_path):
    config = configs.validate(tiny.config(tmp_path, pattern=('alibi()', 'nope()'), eval__lengths=(8, 16)))
    configs.save(config, tmp_path / 'config.json')
    read = configs.from_json(tmp_path / 'config.json')
    assert configs.fields_of(read) == configs.fields_of(config)
    assert read.is_locked


@pytest.mark.parametrize('text, message', [('{', 'is not a config'), ('[1]', 'it holds a list')])
def test_bad_json(tmp_path, text, message):
    (tmp_path / 'config.json').write_text(text)
    with pytest.raises(ValueError, match=message):
        configs.from_json(tmp_path / 'config.json')


def test_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match='is not the directory of a run'):
        configs.from_json(tmp_path / 'config.json')


def test_differences_name_what_changes_training(tmp_path):
    old = tiny.config(tmp_path)
    new = tiny.config(tmp_path / 'else', train__lr=0.5, mesh__fsdp=2, eval__batch=1, train__save_every=7)
    assert configs.differences(old, new) == ['train.lr: 0.01 -> 0.5']
    fields = json.loads(json.dumps(old.to_dict()))
    del fields['train']['z_loss']
    (tmp_path / 'config.json').write_text(json.dumps(fields))
    assert configs.differences(configs.from_json(tmp_path / 'config.json'), old) == ["train.z_loss: '(absent)' -> 0.0"]


def test_every_config_file_is_valid():
    import importlib

    for path in sorted((tiny.ROOT / 'configs').glob('*.py')):
        if path.stem == '__init__':
            continue
        config = importlib.import_module(f'configs.{path.stem}').get_config()
        assert configs.fields_of(config).keys() == configs.fields_of(default.get_config()).keys(), path
        configs.validate(config)


def test_command_line():
    def run(*flags):
        command = [sys.executable, 'train.py', '--config=configs/quickstart.py', *flags]
        return subprocess.Popen(command, cwd=tiny.ROOT, stderr=subprocess.PIPE, text=True)

    cases = [
        (['--config.train.stepz=3'], "unknown config field 'train.stepz'; did you mean 'train.steps'"),
        (['--config.encoding=alibbi()'], "unknown encoding 'alibbi'; did you mean 'alibi'?"),
        (['--config.train.steps=many'], 'invalid literal for int'),
        (["--config.encoding='alibi()'"], 'is not a name or a call'),
        (['--processes=2', '--process_id=2', '--coordinator=localhost:1', '--config.encoding=alibi()'], 'got 2 of 2'),
    ]
    for process, (_, message) in [(run(*flags), (flags, message)) for flags, message in cases]:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 2, errors
        assert message in errors
        assert len(errors.splitlines()) == 1, errors


def test_spec_errors_are_value_errors():
    assert issubclass(SpecError, ValueError)
