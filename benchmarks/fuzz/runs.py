"""Directories of runs from anywhere: links, pipes, devices, missing and further files, configs with
damaged fields or that import code, metrics, and the state of the data; listed, evaluated,
continued, analysed, and as the start of another run.
"""

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import numpy as np
import orbax.checkpoint  # noqa: F401  both take seconds to import, which are part of no try
import tensorboardX  # noqa: F401

from benchmarks.fuzz import checkpoints
from benchmarks.fuzz.damage import (
    TEXTS,
    changed_bytes,
    changed_json,
    file_name,
    odd,
    odd_file,
    remove,
)
from benchmarks.fuzz.programs import refusing, run
from benchmarks.fuzz.target import CANARY, Target
from posenc_jax.lab.analyse import subjects
from posenc_jax.lab.cli import continuations, generate
from posenc_jax.lab.cli import eval as program
from posenc_jax.lab.config import defaults, settings
from posenc_jax.lab.evaluate import run as evaluation
from posenc_jax.lab.evaluate.measurement import Measurement
from posenc_jax.lab.evaluate.results import Results
from posenc_jax.lab.files import imports
from posenc_jax.lab.files.saved_steps import FOLDER
from posenc_jax.lab.runs import initial, restore, stored
from posenc_jax.lab.runs.checkpoint import READERS
from posenc_jax.lab.runs.entries import sealed, unsealed
from posenc_jax.lab.runs.run import Run, validate
from posenc_jax.lab.train import loop
from posenc_jax.lab.train.metrics_file import FILE as METRICS
from posenc_jax.lab.train.step import make_trainer
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.protocol import registry

STEPS = (2, 3)  # with a checkpoint
BESIDE = 'fuzz_beside'  # a module in the working directory
# It leaves a mark in the working directory.
CODE = """from posenc_jax import Encoding, register

open('mark', 'w').close()


@register('fuzz_own', kind='encoding')
class Own(Encoding):
    pass
"""
MEASURED = Measurement('nonoverlapping', 8, 'perplexity', 7.0, 6.0, 8.0, 2.0, 1.0, 0.5, 16, 2)
PATHS = (
    'config.json', METRICS, FOLDER, f'{FOLDER}/3', f'{FOLDER}/2', f'{FOLDER}/3/data',
    f'{FOLDER}/3/model', f'{FOLDER}/3/_CHECKPOINT_METADATA', f'{FOLDER}/3/data/metadata',
    f'{FOLDER}/3/model/_METADATA', loop.LOCK, READERS, 'imports', 'eval', 'tensorboard',
)  # fmt: skip
FURTHER = (
    f'{FOLDER}/9', f'{FOLDER}/007', f'{FOLDER}/-1', f'{FOLDER}/²', f'{FOLDER}/{"9" * 200}',
    f'{FOLDER}/4.orbax-checkpoint-tmp-1', f'{FOLDER}/3.damaged', 'config.json.damaged',
    'eval/results.json', '__init__.py', 'sitecustomize.py', 'posenc_jax.py',
)  # fmt: skip


@functools.cache
def fields_of_run() -> Any:
    config = defaults.get_config().unlock()
    config.model.update(layers=1, width=8, heads=2)
    config.train.update(steps=STEPS[-1], batch=1, length=8, warmup=1, log_every=1, keep=2)
    config.update(encoding='rope()', task='language()', name='run')
    config.data.dataset = 'text:*.txt'
    config.eval.update(at_end=False, lengths=(8,), tokens=16, protocols=('nonoverlapping',))
    return config


def config_of(good: pathlib.Path, workdir: pathlib.Path) -> Any:
    config = fields_of_run().copy_and_resolve_references()
    config.workdir, config.data.data_dir = str(workdir), str(good / 'text')
    return validate(config)


_TRAINERS: dict[str, Any] = {}


def trainer(good: pathlib.Path) -> Any:
    """That of the run; only the state of its data depends on the folder."""
    if str(good) not in _TRAINERS:
        config = config_of(good, good)
        mesh = make_mesh(data=1, devices=jax.local_devices()[:1])
        _TRAINERS[str(good)] = make_trainer(Run.of(config), mesh)
    return _TRAINERS[str(good)]


def prepare(folder: pathlib.Path) -> None:
    (folder / 'text').mkdir()
    (folder / 'text' / 'abba.txt').write_text('abba cab\n' * 100)
    saved = stored.saved_of(config_of(folder, folder))
    state = lambda step: {'next_index': step}
    checkpoints.write_run(folder / 'run', saved, trainer(folder).abstract, STEPS, state)


def entry_files(run: pathlib.Path) -> list[pathlib.Path]:
    """The files with the entries of the checkpoints."""
    return [path for path in sorted(run.glob(f'{FOLDER}/*/data/metadata')) if plain(path)]


def plain(path: pathlib.Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 2**20


def sealed_again(path: pathlib.Path, change: Callable[[dict], Any]) -> None:
    """Changes the entries of a checkpoint, with the digest that belongs to them."""
    with contextlib.suppress(Exception):  # it is damaged already
        entries = unsealed(json.loads(path.read_text()))
        path.write_text(json.dumps(sealed(change(entries))))


def add_code(rng: random.Random, run: pathlib.Path, own: pathlib.Path) -> str:
    """Lets a run import code, mostly so that its checkpoints say the same; what is imported."""
    copy = f'fuzz_copy-{hashlib.sha256(CODE.encode()).hexdigest()[:12]}.py'
    elsewhere = f'../../../{copy}', str(own / copy), f'./{copy}', f'fuzz_copy-{"0" * 12}.py'
    others = f'{BESIDE}.x', 'os', 'posenc_jax.methods.alibi'
    name = rng.choice(
        (copy, copy, copy, BESIDE, rng.choice(elsewhere), rng.choice((*others, *TEXTS)))
    )
    for path in (run / imports.FOLDER / copy, own / copy, own / f'{BESIDE}.py'):
        if not os.path.lexists(path) and (path.parent.is_dir() or not os.path.lexists(path.parent)):
            path.parent.mkdir(exist_ok=True)
            path.write_text(CODE)
    if rng.random() < 0.1 and plain(run / imports.FOLDER / copy):
        odd_file(rng, run / imports.FOLDER / copy, own / copy)
    modules = [name, *([odd(rng)] if rng.random() < 0.1 else [])]
    spec = rng.choice(('rope()', 'fuzz_own()'))
    changed = {'imports': modules, 'encoding': spec}
    change_config(run, lambda fields: {**fields, **changed})
    if rng.random() < 0.8:
        for path in entry_files(run):
            sealed_again(path, lambda found: {**found, 'config': {**found['config'], **changed}})
    return f'imports {modules}, {spec}'[:200]


def change_config(run: pathlib.Path, change: Callable[[dict], Any]) -> None:
    path = run / stored.FILE
    if plain(path):
        with contextlib.suppress(Exception):  # it is damaged already
            path.write_text(json.dumps(change(json.loads(path.read_text()))))


def changed_field(rng: random.Random, config: dict) -> dict:
    """Another value for a field, or for a field of a section."""
    fields = config
    for _ in range(2):
        name = rng.choice(sorted(fields))
        if not isinstance(fields[name], dict):
            break
        fields = fields[name]
    fields[name] = rng.choice((odd(rng), *TEXTS, *(f'{text}()' for text in TEXTS)))
    return config


def changed_metrics(rng: random.Random, data: bytes) -> bytes:
    """Metrics with one more line, half of the time also with other bytes."""
    lines = data.splitlines(keepends=True)
    line = json.dumps({'step': 1, rng.choice(TEXTS): rng.choice(TEXTS)})
    lines.insert(rng.randrange(len(lines) + 1), line.encode())
    found = b''.join(lines)
    return changed_bytes(rng, found) if rng.random() < 0.5 else found


def harm(rng: random.Random, run: pathlib.Path, own: pathlib.Path, beside: pathlib.Path) -> str:
    """Damages one thing of a run; what was done."""
    config, path = run / stored.FILE, run / rng.choice(PATHS)
    match rng.randrange(12):
        case 0 | 1 | 2:
            return add_code(rng, run, own)
        case 3:
            change_config(run, functools.partial(changed_field, rng))
            return 'a field of the config'
        case 4:
            change_config(run, functools.partial(changed_json, rng))
            return 'the JSON of the config'
        case 5 if plain(config):
            other = changed_bytes(rng, config.read_bytes())
            config.write_bytes(rng.choice((other, other, b'[' * 10**5, b'x' * 2**21)))
            return 'the bytes of the config'
        case 6 | 7 if path.parent.is_dir():
            return f'{path.relative_to(run)} is {odd_file(rng, path, beside)}'
        case 8 if os.path.lexists(path):
            if rng.random() < 0.5:
                remove(path)
                return f'no {path.relative_to(run)}'
            there = own / 'aside' / path.name
            there.parent.mkdir(exist_ok=True)
            if not os.path.lexists(there) and not path.is_symlink():
                path.rename(there)
                path.symlink_to(there)
            return f'{path.relative_to(run)} is a link to itself elsewhere'
        case 9:
            new = run / rng.choice((*FURTHER, file_name(rng), f'{FOLDER}/{file_name(rng)}'))
            if new.parent.is_dir() and not os.path.lexists(new):
                new.mkdir() if rng.random() < 0.5 else new.write_text(CODE)
            return f'also {new.name[:50]!r}'
        case 10 if plain(run / METRICS):
            (run / METRICS).write_bytes(changed_metrics(rng, (run / METRICS).read_bytes()))
            return 'metrics'
    for entries in entry_files(run):
        sealed_again(entries, functools.partial(changed_json, rng))
    return 'entries of the checkpoints'


@dataclasses.dataclass(frozen=True)
class Given:
    """The directory of a run, what reads it, the folder of `prepare`, and what was done."""

    run: pathlib.Path
    program: str
    good: pathlib.Path
    what: tuple[str, ...]

    @property
    def own(self) -> pathlib.Path:
        return self.run.parent.parent


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> Given:
    directory = own / 'runs' / (file_name(rng) if rng.random() < 0.1 else 'run')
    shutil.copytree(good / 'run', directory)
    name = rng.choice(sorted(PROGRAMS))
    times, canary = rng.choice((1, 1, 1, 2, 3)), own.with_name(CANARY)
    what = [harm(rng, directory, own, canary) for _ in range(times)]
    if name == 'list':
        for _ in range(rng.choice((1, 3))):
            beside = directory.with_name(f'ru{file_name(rng)}'[:200])
            beside.mkdir(exist_ok=True)
            shutil.copy(good / 'run' / stored.FILE, beside)
            what.append(f'a run {beside.name[:50]!r}')
    return Given(directory, name, good, (directory.name[:50], *what))


def _evaluated(given: Given) -> None:
    run(program.main, f'--run={given.run}', f'--out={given.own / "out"}')


def _generated(given: Given) -> None:
    run(generate.main, f'--run={given.run}', '--prompt=ab', '--tokens=2')


def _listed(given: Given) -> None:
    run(program.main, f'--run={given.run.with_name("rum")}', f'--out={given.own / "out"}')


def _resumed(given: Given) -> None:
    config = fields_of_run().copy_and_resolve_references()
    config.workdir, config.name = str(given.run.parent), given.run.name
    config.data.data_dir = str(given.good / 'text')
    refusing(lambda: loop.train(config))


def _analysed(given: Given) -> None:
    asked = dict(analysis='rope_usage', run=str(given.run), runs='', batches=1, length=0)
    known = argparse.Namespace(**asked, trust_imports=False)
    refusing(lambda: [one.load() for one in subjects.subjects(known, [])])


def _started(given: Given) -> None:
    mesh = make_mesh(data=1, devices=jax.local_devices()[:1])
    refusing(lambda: initial.open_initial(str(given.run)).load(mesh))


PROGRAMS = {
    'evaluate': _evaluated,
    'generate': _generated,
    'list': _listed,
    'resume': _resumed,
    'analyse': _analysed,
    'start': _started,
}


_REMEMBERED: dict[str, tuple] = {}


def remembered(call: Callable) -> Callable:
    """A function that is called once for arguments of equal text. It keeps them, so that no other
    object gets the place in memory that a text names.
    """

    def answer(*args: Any, **kwargs: Any) -> Any:
        key = f'{call.__module__}.{call.__name__}{args}{kwargs}'
        if key not in _REMEMBERED:
            _REMEMBERED[key] = call(*args, **kwargs), args, kwargs
        return _REMEMBERED[key][0]

    return answer


@contextlib.contextmanager
def started_in(folder: pathlib.Path, good: pathlib.Path) -> Iterator[None]:
    """As a program that is started in a folder, but without what takes long: no model computes.
    What is imported and registered is forgotten.
    """
    before, modules = os.getcwd(), set(sys.modules)
    with contextlib.ExitStack() as until:
        replace = lambda owner, name, value: until.enter_context(
            mock.patch.object(owner, name, value)
        )
        replace(evaluation, 'measure', lambda job, model: [MEASURED])
        replace(evaluation.language, 'of_tables', lambda *_, **__: {})
        replace(Results, 'write_pictures', lambda *_: [])
        replace(
            continuations,
            'generator',
            lambda *_: lambda ids, **__: np.full((len(ids), 2), ord('a')),
        )
        replace(loop, 'make_trainer', lambda *_: trainer(good))
        replace(restore, 'abstract_model', remembered(restore.abstract_model))
        for owner in (settings, continuations.settings):
            replace(owner, 'check_call', remembered(owner.check_call))
        replace(sys, 'path', [str(folder), *sys.path])  # as `python -m` does
        for known in (registry._ENTRIES, imports._TEXTS):
            until.enter_context(mock.patch.dict(known))
        os.chdir(folder)
        try:
            yield
        finally:
            os.chdir(before)
            for name in set(sys.modules) - modules:
                if name.startswith('fuzz_'):
                    del sys.modules[name]


def read(given: Given) -> None:
    aside = {path: path.read_bytes() for path in given.own.glob('aside/*') if plain(path)}
    try:
        with started_in(given.own, given.good):
            PROGRAMS[given.program](given)
    finally:
        assert not (given.own / 'mark').exists(), 'code of the run was executed'
        found = {path: path.read_bytes() for path in aside if path.exists()}
        assert found == aside, 'a file to which a link leads was changed'


TARGET = Target(
    make=make, read=read, prepare=prepare, show=lambda given: f'{given.program}: {given.what}'
)
