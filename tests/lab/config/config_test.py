"""Configs come from a file and a command line, whose errors are one line; checks use no device."""

import subprocess
import sys

import jax
import pytest

from configs import default
from posenc_jax.lab.config import config_file
from posenc_jax.lab.config.fields import fields_of
from posenc_jax.lab.runs.run import resolve, run_name, validate
from posenc_jax.lab.runs.sizes import make_task, model_config
from tests.lab.train import tiny

START = """from posenc_jax.lab.config import defaults
def get_config():
    config = defaults.get_config().unlock().copy_and_resolve_references()
    """
END = '\n    return config'
FILES = {  # text of a config file -> what the message says
    'def get_config(:': 'cannot be read as a config: line 1: SyntaxError: invalid syntax',
    'x = 1': r'has no function get_config\(\)',
    'def get_config():\n    return 5': (
        'a config is a ConfigDict as lab/config/defaults.py makes it, got int: 5'
    ),
    'def get_config():\n\n    raise RuntimeError("a\\nb")': (
        r'cannot be read as a config: line 3: RuntimeError: a\\nb$'
    ),
    'import nothing_there': "line 1: ModuleNotFoundError: No module named 'nothing_there'",
    'import sys; sys.exit(0)': 'line 1: SystemExit: 0',
    '\0': 'cannot be read as a config: SyntaxError: source code string cannot contain null bytes',
    f'{START}del config.train{END}': (
        "the config lacks the field 'train.accumulate'; start from lab/config/defaults.py"
    ),
    f'{START}config.train.stepz = 3{END}': (
        "the config has no field 'train.stepz'; did you mean 'train.steps'"
    ),
    f'{START}config.train = 3{END}': "line 4: TypeError: Could not override field 'train'",
    f'{START}config.task = None{END}': 'task must be of type str, got NoneType: None',
}
CONFIG = 'there is no config '
NAMES = {  # name of a config -> what the message says
    'posenc_jax.configs.quikstart': CONFIG + r"'.*'; did you mean 'quickstart'\?",
    'posenc_jax.configs.': CONFIG + "'.*'; valid: 'algorithmic', 'code_mixed', ",
    'posenc_jax.configs.sweeps.text': CONFIG + "'posenc_jax.configs.sweeps.text'; ",
    'quickstart': r"'quickstart' does not .*did you mean posenc_jax.configs.quickstart\?",
    'configs/quikstart.py': r'does not exist.*did you mean posenc_jax.configs.quickstart\?',
    'other/vit.py': 'does not exist; expected a Python .* or e.g. posenc_jax.configs.quick',
}
CHANGES = 'xxx; --config.NAME=VALUE changes a field of the config'
FLAGS = {  # argument of train.py -> what the message says
    '--' + 'x' * 5000: CHANGES,
    '--' + 'x' * 5000 + '=1': CHANGES,
    'x' * 5000: 'xxx…xxx',
    '--config.workdir=' + 'x' * 5000: 'File name too long; expected a folder that can be made',
    '--processes=0': '--processes must be at least 1, got 0',
    '--process_id=7': '--process_id=7 needs the address of process 0; give --coordinator=',
    '--config.train.tune=adapter --config.mesh.data=7': "did you mean 'adapters'?",
    '--config.encoding=alibbi()': "unknown encoding or mixer 'alibbi'; did you mean 'alibi'",
    '--config.train.steps=many': "train.steps='many' is not of type int (its value is 400)",
    '--config.model.parallel=' + 'y' * 100: "yyyyyy' is not True or False (its value is False)",
    '--config=/etc/passwd': "'/etc/passwd' is not a Python file; expected one with get_config()",
    "--config.encoding='alibi()'": 'is not a name or a call',
    '--config.eval.protocols=sliding,slidin': "protocol is 'slidin'; did you mean 'sliding'?",
}
IN_PROCESSES = {
    '--config.train.stepz=3': "config has no field 'train.stepz'; did you mean 'train.steps'",
    '--processes=2 --process_id=2 --coordinator=localhost:1 --config.encoding=alibi()': (
        'got 2 of 2'
    ),
}


@pytest.mark.parametrize('text', FILES)
def test_config_files(tmp_path, text):
    path = tmp_path / 'config.py'
    path.write_text(text)
    with tiny.refused(f'{path}.*{FILES[text]}'):
        config_file.read(str(path))


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
    with tiny.refused('expected .* with get_config', (ValueError, OSError), 300):
        config_file.read(path)


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
    code = f"""
import jax._src.xla_bridge as bridge
from posenc_jax.lab.runs.run import validate
from tests.lab.train import tiny
checked = lambda **fields: validate(tiny.config({str(tmp_path)!r}, **fields))
checked(eval__at_end=True, eval__lengths=(16, 32), eval__stride=8)
for table in {tables}:
    checked(encoding='randomized_pe(max_len=99) | nope()', **{ids})
    checked(encoding=table, **{ids})
segmented = 'segmented_text(source_len=128, segment_len=4)'
checked(encoding='learned_absolute(max_len=128)', task=segmented)
assert not bridge.backends_are_initialized()
import jax; jax.devices()
assert bridge.backends_are_initialized()
"""
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


@pytest.mark.full
def test_every_config_file_is_valid():
    import importlib

    for path in sorted((tiny.ROOT / 'configs').glob('[!_]*.py')):
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

    started = {flags: run(*flags.split()) for flags in IN_PROCESSES}
    found = {}
    for flags in FLAGS:
        with tiny.stopped():
            program.main(['--config=configs/quickstart.py', *flags.split()])
        found[flags] = capsys.readouterr().err
    for flags, process in started.items():
        found[flags] = process.communicate(timeout=120)[1]
        assert process.returncode == 2, found[flags]
    for flags, message in {**FLAGS, **IN_PROCESSES}.items():
        assert message in found[flags] and len(found[flags].splitlines()) == 1, found[flags]


def test_a_config_of_the_package_is_named_or_found_by_its_path(tmp_path, monkeypatch):
    own = config_file.read(str(tiny.ROOT / 'configs' / 'quickstart.py'), ['--config.seed=3'])
    monkeypatch.chdir(tmp_path)
    for name in ('posenc_jax.configs.quickstart', 'configs/quickstart.py'):
        assert config_file.read(name, ['--config.seed=3']).to_dict() == own.to_dict()
    (tmp_path / 'configs').mkdir()
    (tmp_path / 'configs' / 'quickstart.py').write_text('1 / 0')  # a file that is here comes first
    with pytest.raises(ValueError, match='division by zero'):
        config_file.read('configs/quickstart.py')


@pytest.mark.parametrize('name', NAMES)
def test_unknown_configs_are_one_line(name):
    with tiny.refused(NAMES[name], FileNotFoundError):
        config_file.read(name)


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
    with tiny.stopped():
        command.main(['--config=configs/quickstart.py'])
    assert capsys.readouterr().err == f'train.py: {error}\n'


def test_tuples_are_read_as_eval_reads_them():
    from posenc_jax.lab.cli import train as command

    fields = 'eval.protocols=nonoverlapping,sliding', 'eval.lengths=64', 'eval.depths=0,0.5'
    given = [f'--config.{field}' for field in (*fields, 'pattern=alibi(),nope()')]
    read = command.parse(['--config=configs/quickstart.py', *given]).config
    assert read.eval.protocols == ('nonoverlapping', 'sliding') and read.eval.lengths == (64,)
    assert read.eval.depths == (0, 0.5) and read.pattern == ('alibi()', 'nope()')


@pytest.mark.parametrize('name', ['SLURM_NTASKS', 'OMPI_COMM_WORLD_SIZE'])
def test_scheduler_variables(monkeypatch, name):
    from posenc_jax.lab.cluster.cluster import find_cluster

    monkeypatch.setenv(name, '2')
    assert find_cluster('', 1, 0).coordinator == 'auto'
    monkeypatch.setenv(name, 'x')
    with tiny.refused(f"the variable {name} is 'x', expected how many processes"):
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
