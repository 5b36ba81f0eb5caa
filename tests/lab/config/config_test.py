"""Wrong input is found before any device work; configs survive the file they are kept in."""

import json
import os
import subprocess
import sys

import jax
import pytest

from configs import default
from posenc_jax.lab.config import config_file
from posenc_jax.lab.config.fields import fields_of
from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.run import resolve, run_name, validate
from posenc_jax.lab.runs.sizes import make_task, model_config
from posenc_jax.protocol.errors import SpecError
from tests.lab.train import tiny

SEGMENTED = dict(task='segmented_text(source_len=128, segment_len=4)')
CREAM = dict(task='cream_text(factor=2)')


@pytest.mark.parametrize(
    'fields, message',
    [
        (dict(encoding='alibbi()'), "unknown encoding or mixer 'alibbi'; did you mean 'alibi'"),
        (dict(encoding='alibi(slops=2)'), 'alibi has no argument .*signature'),
        (dict(pattern=('alibi()', 'nopee()')), "encoding or mixer 'nopee'; did you mean 'nope'"),
        (dict(task='adition()'), "unknown task 'adition'; did you mean 'addition'"),
        (dict(task='copy() | reverse()'), 'cannot be joined'),
        (
            dict(data__dataset='pydoc_topic'),
            "unknown dataset 'pydoc_topic'; did you mean 'pydoc_topics'",
        ),
        (dict(data__packing='streams'), "packing is 'streams'; did you mean 'stream'"),
        (dict(model__norm='layer_norm'), "norm is 'layer_norm'; did you mean 'layernorm'"),
        (dict(model__heads=3), 'width 16 is not a multiple of 3 heads'),
        (dict(model__kv_heads=3), '4 heads are not a multiple of 3 kv_heads'),
        (dict(train__steps=0), 'train.steps must be at least 1, got 0'),
        (dict(train__segment=32), 'train.segment must be below train.length = 32, or 0, got 32'),
        (
            dict(train__segment=8, encoding='randomized_pe(max_len=64) | rope()'),
            'train.segment must be 0: randomized_pe assigns positions to whole texts, which',
        ),
        (dict(mesh__data=0), 'mesh.data must be at least 1, or -1 for the devices left, got 0'),
        (dict(mesh__tensor=0), 'mesh.tensor must be at least 1, got 0'),
        (dict(train__memory=8), 'train.memory must be 0 where train.segment is 0, got 8'),
        (
            dict(train__segment=8, model__kind='encoder'),
            "train.segment must be 0 for a model of kind 'encoder', got 8",
        ),
        (dict(train__warmup=25), 'train.warmup must be at most train.steps = 24, got 25'),
        (
            dict(train__batch=9, train__accumulate=2),
            'train.batch must be a multiple of train.accumulate = 2, got 9',
        ),
        (dict(train__lr=-1.0), 'train.lr must be positive'),
        (dict(seed=-1), 'seed must be between 0 and 4294967295, got -1'),
        (dict(eval__split='dev'), "eval.split is 'dev'"),
        (dict(eval__lengths=(0,)), r'eval.lengths must be whole numbers of at least 1, got \(0,\)'),
        (dict(mesh__cpu_devices=-1), 'mesh.cpu_devices must be at least 0'),
        (
            dict(cluster__start_timeout=0),
            'cluster.start_timeout must be between 10 and 86400 seconds, got 0',
        ),
        (
            dict(cluster__stop_status=2),
            'cluster.stop_status must be between 3 and 125, .* or 0, got 2',
        ),
        (
            dict(cluster__peer_timeout=9),
            'cluster.peer_timeout must be between 10 and 86400 seconds, or 0 for none, got 9',
        ),
        (dict(name='../there'), 'name must be a folder within workdir'),
        # What the evaluation at the end would refuse.
        (
            dict(eval__at_end=True, eval__stride=8),
            'would fail: at length 64: learned_absolute: .*lengths that fit: .*lengths=32',
        ),
        (
            dict(eval__at_end=True, eval__stride=8),
            r'or train without it: --config.eval.at_end=False',
        ),
        (
            dict(eval__at_end=True, encoding='nope()', eval__lengths=(64, 10**9)),
            'needs 1000000001 tokens, but the text has',
        ),
        (
            dict(eval__at_end=True, eval__stride=8, encoding='nope()', extend='yarn(factor=2.0)'),
            'would fail: .*yarn',
        ),
        (dict(eval__protocols=('slidin',)), "protocol is 'slidin'; did you mean 'sliding'"),
        (dict(eval__positions='some'), "eval.positions is 'some'"),
        (dict(eval__samples=0), 'eval.samples must be at least 1, got 0'),
        # Ids that a task supplies.
        (
            dict(
                task='addition(ids="coupled", reverse_output=True)',
                encoding='position_coupling(max_position=3)',
                train__length=4,
            ),
            'position_coupling: position . is not in 0 .. 3',
        ),
        (
            SEGMENTED | dict(encoding='learned_absolute(max_len=32)'),
            'learned_absolute: position 127 is not in 0 .. 31',
        ),
        (
            SEGMENTED | dict(encoding='position_coupling(max_position=32)'),
            'coupling: position 127 is not in 0 .. 32',
        ),
        (
            SEGMENTED | dict(encoding='randomized_pe(max_len=64) | rope()'),
            'randomized_pe: position 127 is not in 0 .. 63',
        ),
        (
            CREAM | dict(encoding='learned_absolute(max_len=32)'),
            'learned_absolute: position 63 is not in 0 .. 31',
        ),
        (CREAM | dict(encoding='cream(factor=2) | rope()'), 'cream: position 63 is not in 0 .. 31'),
        # Models that see what they should predict.
        (
            dict(model__kind='encoder', encoding='nope()'),
            "model.kind is 'encoder': .*use 'decoder'",
        ),
        (dict(encoding='rope() | full()'), 'full lets queries see later tokens'),
        (
            dict(pattern=('rope()', 'rope() | prefix(length=4)')),
            'prefix lets queries see later tokens',
        ),
        # Lengths that a task does not have.
        (
            dict(task='passkey()', encoding='nope()'),
            r'train.length=32, train.min_length=1: .* at least 7, got \(1, 32\)',
        ),
        (
            dict(task='mqar()', encoding='nope()'),
            r'train.min_length=1: .* at least 16, got \(1, 32\)',
        ),
    ],
)
def test_wrong_fields(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        validate(tiny.config(tmp_path, **fields))


@pytest.mark.parametrize(
    'fields, message',
    [
        (
            dict(model__width=10**9),
            r'a model of .*width=1000000000, .* would take 83.3 EiB; at most 16 TiB are accepted',
        ),
        (
            dict(train__batch=10**9),
            r'train.batch=1000000000 rows of 32 tokens would take 358 GiB, and this machine has',
        ),
        (
            dict(train__length=10**9),
            'train.length=1000000000: .* rows of 1000000000 tokens, 11.2 GiB each; a row holds '
            'at most 4194304',
        ),
        (
            dict(task='addition()', encoding='nope()', train__length=10**8),
            r'length \(1, 100000000\) has rows of 3\d+ tokens, .* GiB each; a row',
        ),
        (
            dict(
                task='copy()',
                encoding='nope()',
                train__length=8,
                eval__at_end=True,
                eval__samples=10**9,
                eval__lengths=(8,),
            ),
            'would fail: at length 8: eval.samples=1000000000 rows of 18 tokens would take 201 '
            'GiB, and this machine has',
        ),
        (
            dict(eval__at_end=True, encoding='nope()', eval__stride=8, eval__batch=10**9),
            'would fail: eval.batch=1000000000 rows of 32 tokens',
        ),
        (dict(encoding='cope(npos=1000000000)'), 'cope: its variables would take 14.9 GiB'),
        (
            dict(model__layers=2**31),
            'model.layers must be a whole number of 32 bits, got 2147483648',
        ),
        (
            dict(train__steps=10**5000),
            'train.steps must be a whole number of 32 bits, got a whole number of 16610 bits',
        ),
        (dict(train__lr=float('inf')), 'train.lr must be a finite number of 32 bits, got inf'),
        (
            dict(model__epsilon=float('nan')),
            'model.epsilon must be a finite number of 32 bits, got nan',
        ),
        (dict(pattern=(1, 2)), r'pattern must hold spec strings, got \(1, 2\)'),
        (
            dict(pattern=('rope()',) * 300, model__layers=300),
            'pattern must hold at most 256 spec strings, got 300',
        ),
        (
            dict(name='a\0b'),
            r"name must be text of one line without control characters, got 'a\\x00b'",
        ),
        (dict(name='a' * 300), 'name must be a folder within workdir, of at most 255 bytes'),
        (
            dict(train__segment=1, train__length=100),
            'train.segment must be 0, or at least train.length / 64',
        ),
    ],
)
def test_sizes_and_values_that_nothing_can_hold(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message) as error:
        validate(tiny.config(tmp_path, **fields))
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    'text, message',
    [
        ('def get_config(:', 'cannot be read as a config: line 1: SyntaxError: invalid syntax'),
        ('x = 1', r'has no function get_config\(\)'),
        (
            'def get_config():\n    return 5',
            'a config is a ConfigDict as lab/config/defaults.py makes it, got int: 5',
        ),
        (
            'def get_config():\n\n    raise RuntimeError("a\\nb")',
            r'cannot be read as a config: line 3: RuntimeError: a\\nb$',
        ),
        ('import nothing_there', "line 1: ModuleNotFoundError: No module named 'nothing_there'"),
        ('import sys; sys.exit(0)', 'line 1: SystemExit: 0'),
        (
            '\0',
            'cannot be read as a config: SyntaxError: source code string cannot contain null bytes',
        ),
        (
            '{}    del config.train',
            "the config lacks the field 'train.accumulate'; start from lab/config/defaults.py",
        ),
        (
            '{}    config.train.stepz = 3',
            "the config has no field 'train.stepz'; did you mean 'train.steps'",
        ),
        ('{}    config.train = 3', "line 4: TypeError: Could not override field 'train'"),
        ('{}    config.task = None', 'task must be of type str, got NoneType: None'),
    ],
)
def test_config_files(tmp_path, text, message):
    start = (
        'from posenc_jax.lab.config import defaults\ndef get_config():\n    config = '
        'defaults.get_config().unlock().copy_and_resolve_references()\n'
    )
    path = tmp_path / 'config.py'
    path.write_text(text.format(start) + '\n    return config' * text.startswith('{}'))
    with pytest.raises(ValueError, match=message) as error:
        config_file.read(str(path))
    assert str(path) in str(error.value) and len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    'path',
    [
        '/etc',
        'configs',
        'configs/quickstart.py:x',
        'nothing.py',
        '',
        'a\0b',
        '/etc/passwd',
        'é' * 500,
    ],
)
def test_what_is_no_config_file(path):
    with pytest.raises((ValueError, OSError), match='expected .* with get_config') as error:
        config_file.read(path)
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 300


def test_missing_text(tmp_path):
    with pytest.raises(FileNotFoundError, match='no file matches'):
        validate(tiny.config(tmp_path, data__dataset='text:*.txt', data__data_dir=str(tmp_path)))


@pytest.mark.full
def test_no_device_is_touched(tmp_path):
    ids = dict(task='copy(ids="coupled")', eval__at_end=True, train__length=5)
    tables = (
        'position_coupling(max_position=50)',
        "learned_absolute(max_len=9, overflow='interpolate')",
    )
    code = '\n'.join(
        [
            'import jax._src.xla_bridge as bridge',
            'from posenc_jax.lab.runs.run import validate',
            'from tests.lab.train import tiny',
            f'validate(tiny.config({str(tmp_path)!r}, eval__at_end=True, '
            'eval__lengths=(16, 32), eval__stride=8))',
            f'for table in {tables}:',
            f'    validate(tiny.config({str(tmp_path)!r}, '
            f'encoding="randomized_pe(max_len=99) | nope()", **{ids}))',
            f'    validate(tiny.config({str(tmp_path)!r}, encoding=table, **{ids}))',
            f'validate(tiny.config({str(tmp_path)!r}, '
            f'encoding="learned_absolute(max_len=128)", **{SEGMENTED}))',
            'assert not bridge.backends_are_initialized()',
            'import jax; jax.devices()',
            'assert bridge.backends_are_initialized()',
        ]
    )
    subprocess.run([sys.executable, '-c', code], cwd=tiny.ROOT, check=True)


def test_validate_leaves_its_argument_alone(tmp_path):
    config = tiny.config(tmp_path)
    made = validate(config)
    assert config.name == ''
    assert made.name == 'language-pydoc_topics-learned_absolute-max_len-32-alibi-s0'
    with pytest.raises(AttributeError):
        made.train.stepz = 1


@pytest.mark.parametrize(
    'fields, name',
    [
        (dict(encoding='alibi()', seed=3), 'language-pydoc_topics-alibi-s3'),
        (
            dict(encoding='alibi()', task="language(dataset='stdlib_code')"),
            'language-dataset-stdlib_code-alibi-s0',
        ),
        (dict(pattern=('alibi()', 'nope()'), task='copy()'), 'copy-alibi-nope-s0'),
    ],
)
def test_run_name(tmp_path, fields, name):
    assert run_name(tiny.config(tmp_path, **fields)) == name


def test_task_arguments_come_from_the_string_first(tmp_path):
    config = tiny.config(tmp_path, task="language(packing='documents')", data__packing='stream')
    assert make_task(config).packing == 'documents'
    config = tiny.config(tmp_path, data__packing='documents')
    assert make_task(config).packing == 'documents'


def test_train_len_is_the_width_of_a_batch(tmp_path):
    config = tiny.config(tmp_path, task='addition()', train__length=5)
    assert model_config(config, make_task(config)).train_len == 19
    config = tiny.config(tmp_path)
    assert model_config(config, make_task(config)).train_len == 32


def test_json_round_trip(tmp_path):
    config = validate(tiny.config(tmp_path, pattern=('alibi()', 'nope()'), eval__lengths=(8, 16)))
    stored.save(config, tmp_path / 'config.json')
    read = stored.from_json(tmp_path / 'config.json')
    assert fields_of(read) == fields_of(config)
    assert read.is_locked


@pytest.mark.parametrize(
    'text, message',
    [
        ('{', 'is not a config'),
        ('[1]', 'it holds a list'),
        ('{}', 'it holds no field'),
        (
            '{"train": {"stepz": 3, "lr": 0.1}, "colour": 1}',
            r"does not know: 'colour'; 'train.stepz' \(did you mean 'train.steps'\?\)$",
        ),
        ('{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1}', "'f'; and 1 more$"),
        ('{"train": 3}', 'train is 3, expected an object of fields'),
        ('{"train": {"steps": "many"}}', "train.steps is 'many', expected a whole number"),
        ('{"train": {"steps": true}}', 'train.steps is True, expected a whole number'),
        ('{"train": {"steps": 1.0}}', 'train.steps is 1.0, expected a whole number'),
        ('{"train": {"steps": null}}', 'train.steps is None, expected a whole number'),
        (
            '{"train": {"steps": 1%s}}' % ('0' * 30),
            'train.steps is 10+, expected a whole number below 2[*]{2}63',
        ),
        ('{"train": {"steps": 1%s}}' % ('0' * 5000), 'is not a config: Exceeds the limit'),
        ('{"train": {"lr": NaN}}', 'train.lr is nan, expected a finite number'),
        ('{"train": {"lr": 1e999}}', 'train.lr is inf, expected a finite number'),
        ('{"model": {"tie": 1}}', 'model.tie is 1, expected true or false'),
        ('{"encoding": ["rope()"]}', r"encoding is \['rope\(\)'\], expected a string"),
        ('{"pattern": "rope()"}', r"pattern is 'rope\(\)', expected a list"),
        ('{"pattern": ["rope()", 3]}', r'pattern\[1\] is 3, expected a string'),
        ('{"eval": {"lengths": [[64]]}}', r'eval.lengths\[0\] is \[64\], expected a whole number'),
        (
            '{"seed": 1, "task_shape": [3]}',
            r'task_shape is \[3\], expected an object with the positive numbers vocab_size and '
            r'width',
        ),
        (
            '{"seed": 1, "task_shape": {"vocab_size": 3}}',
            r"task_shape is \{'vocab_size': 3\}, expected",
        ),
        (
            '{"seed": 1, "task_shape": {"vocab_size": 3, "width": "x"}}',
            "task_shape.width is 'x', expected a whole number",
        ),
        (
            '{"seed": 1, "task_shape": {"vocab_size": 3, "width": 0}}',
            'expected an object with the positive numbers',
        ),
        ('{"seed": 1, "task_shape": null}', 'task_shape is None, expected an object'),
        ('{"seed": 1, "resumed_changed": 3}', 'resumed_changed is 3, expected a list'),
        ('{"seed": 1, "seed": 2}', "the name 'seed' appears 2 times in one object"),
        ('{"a":' * 10_000, 'its lists or objects are nested too deeply'),
        (
            '{"pattern": ' + '[' * 10_000 + ']' * 10_000 + '}',
            'its lists or objects are nested too deeply',
        ),
        ('{"pattern": ' + '[' * 900 + ']' * 900 + '}', r'pattern\[0\] is .*, expected a string'),
        ('{"seed": 1}' + ' ' * 2**20, 'it has 1048587 bytes, expected at most 1048576'),
        ('\0' * 100, 'is not a config'),
        ('', 'is not a config'),
    ],
)
def test_bad_json(tmp_path, text, message):
    path = tmp_path / 'config.json'
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        stored.read_saved(path)
    assert (
        str(error.value).startswith(str(path))
        and '\n' not in str(error.value)
        and len(str(error.value)) < 1000
    )


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


@pytest.mark.full
def test_every_config_file_is_valid():
    import importlib

    for path in sorted((tiny.ROOT / 'configs').glob('*.py')):
        if path.stem == '__init__':
            continue
        config = importlib.import_module(f'configs.{path.stem}').get_config()
        assert fields_of(config).keys() == fields_of(default.get_config()).keys(), path
        validate(config)


@pytest.mark.full
def test_command_line(capsys):
    """An error in the flags and one in training end a real process; the others end `main`."""
    from posenc_jax.lab.cli import train as program

    def run(*flags):
        command = [sys.executable, 'train.py', '--config=configs/quickstart.py', *flags]
        return subprocess.Popen(command, cwd=tiny.ROOT, stderr=subprocess.PIPE, text=True)

    in_processes = [
        (
            ['--config.train.stepz=3'],
            "config has no field 'train.stepz'; did you mean 'train.steps'",
        ),
        (
            [
                '--processes=2',
                '--process_id=2',
                '--coordinator=localhost:1',
                '--config.encoding=alibi()',
            ],
            'got 2 of 2',
        ),
    ]
    here = [
        (['--' + 'x' * 5000], 'xxx; --config.NAME=VALUE changes a field of the config'),
        (['--' + 'x' * 5000 + '=1'], 'xxx; --config.NAME=VALUE changes a field of the config'),
        (['x' * 5000], 'xxx…xxx'),
        (
            ['--config.workdir=' + 'x' * 5000],
            'File name too long; expected a folder that can be made',
        ),
        (['--processes=0'], '--processes must be at least 1, got 0'),
        (['--process_id=7'], '--process_id=7 needs the address of process 0; give --coordinator='),
        (['--config.train.tune=adapter', '--config.mesh.data=7'], "did you mean 'adapters'?"),
        (
            ['--config.encoding=alibbi()'],
            "unknown encoding or mixer 'alibbi'; did you mean 'alibi'",
        ),
        (['--config.train.steps=many'], "train.steps='many' is not of type int (its value is 400)"),
        (
            ['--config.model.parallel=' + 'y' * 100],
            "yyyyyy' is not True or False (its value is False)",
        ),
        (
            ['--config=/etc/passwd'],
            "'/etc/passwd' is not a Python file; expected one with get_config()",
        ),
        (["--config.encoding='alibi()'"], 'is not a name or a call'),
        (
            ['--config.eval.protocols=nonoverlapping,slidin'],
            "protocol is 'slidin'; did you mean 'sliding'?",
        ),
    ]
    found = []
    started = [(run(*given), message) for given, message in in_processes]
    for given, message in here:
        with pytest.raises(SystemExit, match='2'):
            program.main(['--config=configs/quickstart.py', *given])
        found.append((capsys.readouterr().err, message))
    for process, message in started:
        found.append((process.communicate(timeout=120)[1], message))
        assert process.returncode == 2, found[-1]
    for errors, message in found:
        assert message in errors
        assert len(errors.splitlines()) == 1, errors


def test_a_config_of_the_package_is_named_or_found_by_its_path(tmp_path, monkeypatch):
    own = config_file.read(str(tiny.ROOT / 'configs' / 'quickstart.py'), ['--config.seed=3'])
    monkeypatch.chdir(tmp_path)
    for name in ('posenc_jax.configs.quickstart', 'configs/quickstart.py'):
        assert config_file.read(name, ['--config.seed=3']).to_dict() == own.to_dict()
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'quickstart.py').write_text('1 / 0')  # a file that is here comes first
    with pytest.raises(ValueError, match='division by zero'):
        config_file.read('configs/quickstart.py')


@pytest.mark.parametrize(
    'name, said',
    [
        ('posenc_jax.configs.quikstart', r"there is no config '.*'; did you mean 'quickstart'\?"),
        ('posenc_jax.configs.', "there is no config '.*'; valid: 'algorithmic', 'code_mixed', "),
        ('posenc_jax.configs.sweeps.text', "there is no config 'posenc_jax.configs.sweeps.text'; "),
        ('quickstart', r"'quickstart' does not .*did you mean posenc_jax.configs.quickstart\?"),
        ('configs/quikstart.py', r'does not exist.*did you mean posenc_jax.configs.quickstart\?'),
        ('other/vit.py', 'does not exist; expected a Python .* or e.g. posenc_jax.configs.quick'),
    ],
)
def test_unknown_configs_are_one_line(name, said):
    with pytest.raises(FileNotFoundError, match=said) as caught:
        config_file.read(name)
    assert '\n' not in str(caught.value)


def test_spec_errors_are_value_errors():
    assert issubclass(SpecError, ValueError)


@pytest.mark.parametrize(
    'error', [PermissionError(13, 'Permission denied'), ImportError('needs array_record')]
)
def test_errors_of_the_surroundings_are_one_message(monkeypatch, capsys, error):
    from posenc_jax.lab.cli import train as command
    from posenc_jax.lab.cluster import cluster
    from posenc_jax.lab.train import loop

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(loop, 'train', fail)
    monkeypatch.setattr(cluster, 'find_cluster', lambda *_: None)
    with pytest.raises(SystemExit, match='2'):
        command.main(['--config=configs/quickstart.py'])
    assert capsys.readouterr().err == f'train.py: {error}\n'


def test_tuples_are_read_as_eval_reads_them():
    from posenc_jax.lab.cli import train as command

    given = [
        '--config.eval.protocols=nonoverlapping,sliding',
        '--config.eval.lengths=64',
        '--config.eval.depths=0,0.5',
    ]
    given += ['--config.pattern=alibi(),nope()']
    read = command.parse(['--config=configs/quickstart.py', *given]).config
    assert read.eval.protocols == ('nonoverlapping', 'sliding') and read.eval.lengths == (64,)
    assert read.eval.depths == (0, 0.5) and read.pattern == ('alibi()', 'nope()')


@pytest.mark.parametrize('name', ['SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'])
def test_scheduler_variables(monkeypatch, name):
    from posenc_jax.lab.cluster.cluster import find_cluster

    monkeypatch.setenv(name, '2')
    assert find_cluster('', 1, 0).coordinator == 'auto'
    monkeypatch.setenv(name, 'x')
    with pytest.raises(
        ValueError, match=f"the variable {name} is 'x', expected how many processes"
    ):
        find_cluster('', 1, 0)


@pytest.mark.parametrize('implementation', ['', 'kernel'])
def test_a_config_is_checked_before_a_device_is_used(monkeypatch, implementation):
    """Processes join, and the CPU is split, only behind the checks."""
    for name in ('default_backend', 'devices', 'device_count'):
        monkeypatch.setattr(jax, name, lambda *_, name=name: pytest.fail(f'jax.{name} was called'))
    config = default.get_config()
    config.model.update(layers=1, width=64, heads=1, implementation=implementation)
    config.train.length = 128
    resolve(config)
