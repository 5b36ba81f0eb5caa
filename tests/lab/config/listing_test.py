"""The list of fields of `train.py --help`: every field, its default, and the comment on it."""

import ast

import pytest

from posenc_jax.lab.cli import train
from posenc_jax.lab.config import defaults
from posenc_jax.lab.config.listing import described, field_help


def leaves(config, prefix=''):
    for name, value in config.items():
        if hasattr(value, 'items'):
            yield from leaves(value, f'{prefix}{name}.')
        else:
            yield prefix + name, value


def test_every_field_is_there_with_its_default():
    shown = {name: ast.literal_eval(value) for name, value, _ in described() if value is not None}
    assert shown == dict(leaves(defaults.get_config()))


def test_comments_before_and_behind_a_field_are_its_own():
    said = {name: comment for name, _, comment in described()}
    assert said['workdir'] == 'folder that holds the runs, or gs://BUCKET/PATH, see docs/pods.md'
    assert said['share'].startswith('parameters of the encoding: one set per')
    assert (
        said['init'] == 'where the weights come from' and said['train.steps'] == 'optimizer steps'
    )
    without = [name for name, value, comment in described() if value is not None and not comment]
    assert without == [
        'model.overlap',
        'model.lower',
        'model.layers',
    ]  # of the field above, or plain


def test_some_fields_of_a_section_and_whole_ones():
    text = field_help(('mesh', 'task', 'model.remat'))
    fields = [line.strip() for line in text.splitlines() if '--config.' in line]
    of_mesh = {f'--config.mesh.{name}' for name in defaults.get_config().mesh}
    expected = {'--config.task', '--config.model.remat', *of_mesh}
    assert {line.partition('=')[0] for line in fields} == expected
    assert [line for line in text.splitlines() if line.startswith('  model')] == ['  model:']


def test_a_field_without_its_section_is_proposed(capsys):
    for flag, message in (
        ('workdir', 'did you mean --config.workdir?'),
        ('steps', 'did you mean --config.train.steps?'),
        ('trust_imports', 'did you mean --trust-imports?'),
        ('set', '--config.NAME=VALUE changes a field of the config'),
    ):
        with pytest.raises(SystemExit):
            train.parse([f'--{flag}=3'])
        assert f'unknown argument --{flag}; ' in (text := capsys.readouterr().err)
        assert message in text


def test_help_is_readable(capsys):
    with pytest.raises(SystemExit) as ended:
        train.parse(['--help'])
    text = capsys.readouterr().out
    assert not ended.value.code and field_help() in text
    assert '  --config.train.lr=0.001\n' in text or '  --config.train.lr=1e-3\n' in text
    assert max(map(len, field_help().splitlines())) <= 100
