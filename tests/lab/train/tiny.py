"""A run small enough for tests, in this process or as a real one."""

import contextlib
import functools
import os
import pathlib
import subprocess
import sys

import pytest

from configs import default
from posenc_jax.lab.config.overrides import read_overrides, replaced
from posenc_jax.lab.train.metrics_file import FILE, read_lines

ROOT = pathlib.Path(__file__).parents[3]

FIELDS = {
    'encoding': 'learned_absolute(max_len=32) | alibi()',
    'model.layers': 2,
    'model.width': 16,
    'model.heads': 4,
    'model.dropout': 0.1,
    'train.steps': 24,
    'train.batch': 8,
    'train.length': 32,
    'train.lr': 1e-2,
    'train.warmup': 4,
    'train.log_every': 1,
    'train.eval_every': 0,
    'train.save_every': 4,
    'train.keep': 10,
    'eval.at_end': False,
}


def dotted(fields):
    """Fields with '__' for the dot by their names."""
    return {name.replace('__', '.'): value for name, value in fields.items()}


def config(workdir, **fields):
    """The tiny config; further fields with '__' for the dot."""
    made = default.get_config()
    made.update_from_flattened_dict(FIELDS)
    made.workdir = str(workdir)
    made.update_from_flattened_dict(dotted(fields))
    return made


def typed(workdir, *fields, base=FIELDS):
    """A config with fields as a command line has them, such as 'train.steps=3'."""
    made = default.get_config()
    made.update_from_flattened_dict(base)
    made.workdir = str(workdir)
    return replaced(made, read_overrides(f'--config.{field}' for field in fields))


def losses(directory):
    """The losses of a run in the order of its steps; the line of a validation has none."""
    return [line['loss'] for line in read_lines(directory / FILE) if 'loss' in line]


@functools.cache
def _trained(kind, root, start):
    workdir = root / kind
    start(workdir, kind)
    return workdir


def trained_when_asked(root, start):
    """A function from a kind of run to its working directory, in which `start(workdir, kind)`
    trains it when it is first asked for.
    """
    return functools.partial(_trained, root=root, start=start)


@contextlib.contextmanager
def refused(message, kind=ValueError, longest=2000):
    """A scope that must end with an error of one line, which says something."""
    with pytest.raises(kind, match=message) as error:
        yield
    said = str(error.value)
    assert len(said.splitlines()) == 1 and len(said) < longest, said


@contextlib.contextmanager
def stopped(status=2):
    """A scope that must end the program with a status."""
    with pytest.raises(SystemExit) as ended:
        yield
    assert ended.value.code == status


def start(
    workdir, *flags: str, devices: int = 1, cache: pathlib.Path | None = None, **fields
) -> subprocess.Popen:
    """`python train.py` on the tiny config, with its output in a pipe; `cache` keeps compiled
    functions.
    """
    fields = {**FIELDS, 'workdir': str(workdir), **dotted(fields)}
    settings = [f'--config.{name}={value}' for name, value in fields.items()]
    command = 'train.py', '--config=configs/default.py', *settings, *flags
    return start_python(*command, devices=devices, cache=cache)


def start_python(
    *command: str, devices: int = 1, cache: pathlib.Path | None = None
) -> subprocess.Popen:
    """A process of Python with this number of emulated devices, with its output in a pipe."""
    flags_of_tests = [f for f in os.environ.get('XLA_FLAGS', '').split() if 'device_count' not in f]
    xla = ' '.join([*flags_of_tests, f'--xla_force_host_platform_device_count={devices}'])
    environment = {**os.environ, 'XLA_FLAGS': xla, 'JAX_PLATFORMS': 'cpu'}
    if cache is not None:
        environment |= {
            'JAX_COMPILATION_CACHE_DIR': str(cache),
            'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
        }
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
