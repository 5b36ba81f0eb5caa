"""Directories of runs: the files of a tiny trained run, damaged in one to three places, evaluated
and resumed.
"""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import random
import shutil
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint  # noqa: F401  both take seconds to import, which are part of no try
import tensorboardX  # noqa: F401

from benchmarks.fuzz.target import Target
from posenc_jax.lab.config import defaults
from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.checkpoint import Checkpoints
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.runs.run import Run, validate
from posenc_jax.lab.runs.state import take_apart
from posenc_jax.lab.train.metrics import MetricsLog
from posenc_jax.lab.train.metrics_file import FILE
from posenc_jax.lab.train.step import make_trainer
from posenc_jax.layer.sharding import make_mesh

STEPS = (3, 4, 6)  # with a checkpoint
VALUES = (None, True, False, 0, -1, 1, 3, 7, 2**31, 2**63, 10**40, 0.5, 1e-300, 1e300, float('nan'),
    float('inf'), '', 'x', 'rope()',
          [], [[]], {}, [3], {'a': 1})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Damaged:
    """What was done to a run, and whether it is resumed or evaluated (the newest checkpoint, or
    that of a step).
    """

    run: pathlib.Path
    good: pathlib.Path
    damage: tuple[str, ...]
    resumed: bool
    step: int | None


@functools.cache
def config_of_run():
    config = defaults.get_config().unlock()
    config.model.update(layers=1, width=8, heads=2)
    config.train.update(steps=6, batch=1, length=8, warmup=1, log_every=1, keep=3)
    config.update(encoding='nope()', task='copy()', name='run')
    config.eval.at_end = False
    return validate(config)


@functools.cache
def trainer():
    config = config_of_run()
    mesh = make_mesh(data=1, devices=jax.local_devices()[:1])
    return make_trainer(Run.of(config), mesh)


def prepare(folder: pathlib.Path) -> None:
    run, saved = folder / 'run', stored.saved_of(config_of_run())
    write_run(run, saved, trainer().abstract, STEPS, lambda step: {'next_index': 10 * step})
    for step in STEPS:
        with Checkpoints(run, keep=3, saved=saved) as checkpoints:
            found = checkpoints.restore_model(abstract(), step)[0]
        np.savez(folder / f'{step}.npz', *jax.tree.leaves(found))


def write_run(
    run: pathlib.Path,
    saved: stored.Saved,
    abstract: Any,
    steps: tuple[int, ...],
    data: Callable[[int], dict[str, Any]],
) -> None:
    """Writes a run as training leaves it, with arrays of noise, so that none of them is small on
    the disk or equal to another.

    Args:
      run: its directory.
      saved: its config.
      abstract: the shapes of its state.
      steps: those with a checkpoint, ascending.
      data: step -> the state of the data.
    """
    with Checkpoints(run, keep=len(steps), saved=saved) as checkpoints, MetricsLog(run, 0) as log:
        stored.write(saved, run / stored.FILE)
        for step in range(1, steps[-1] + 1):
            log.write(step, {'loss': 1 / step, 'time': 1e9 + step})
            if step in steps:
                checkpoints.save(step, state_of(step, abstract), data(step), log.written)
    shutil.rmtree(run / 'tensorboard')


def state_of(step: int, abstract: Any):
    rng = np.random.default_rng(step)
    # The second moments of the optimizer are positive.
    fill = lambda a: np.asarray(rng.uniform(size=a.shape) if a.ndim else step, a.dtype)
    return jax.tree.map(lambda a: jax.device_put(fill(a), a.sharding), abstract)


def abstract():
    return {'params': trainer().abstract.params, 'constants': trainer().abstract.constants}


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> Damaged:
    run = own / 'run'
    shutil.copytree(good / 'run', run)
    damage = tuple(harm(rng, run) for _ in range(rng.choice((1, 1, 1, 2, 3))))
    return Damaged(run, good, damage, rng.random() < 0.5, rng.choice((None, None, *STEPS)))


def harm(rng: random.Random, run: pathlib.Path) -> str:
    """Damages one thing; what was done."""
    files = sorted(path for path in run.rglob('*') if path.is_file())
    if not files:
        return 'nothing is left'
    few = [
        path for path in files if path.name in (stored.FILE, FILE, 'metadata')
    ]  # among many with arrays
    path = rng.choice(few if few and rng.random() < 0.4 else files)
    name, content = path.relative_to(run), path.read_bytes()
    at = rng.randrange(len(content) + 1)
    match rng.randrange(10):
        case 0:
            changed = bytearray(content)
            for _ in range(rng.choice((1, 2, 8))):
                if changed:
                    changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
            path.write_bytes(changed)
            return f'{name}: bits flipped'
        case 1:
            path.write_bytes(content[:at])
            return f'{name}: cut off at {at}'
        case 2:
            end = rng.randrange(at, len(content) + 1)
            path.write_bytes(content[:at] + bytes(end - at) + content[end:])
            return f'{name}: zeros from {at} to {end}'
        case 3:
            path.write_bytes(content[:at] + rng.randbytes(rng.choice((1, 4, 1000))) + content[at:])
            return f'{name}: noise put in at {at}'
        case 4:
            other = rng.choice(files)
            path.write_bytes(other.read_bytes())
            other.write_bytes(content)
            return f'{name} and {other.relative_to(run)} swapped'
        case 5:
            path.unlink()
            if rng.random() < 0.3:
                path.mkdir()
                return f'{name} is a folder'
            return f'{name} deleted'
        case 6:
            new = path.with_name(
                rng.choice(('x', 'manifest.ocdbt', '_METADATA', 'metadata', stored.FILE, FILE, '7'))
            )
            if not new.is_dir():
                path.rename(new)
            return f'{name} renamed to {new.name}'
        case 7:
            return harm_folder(rng, run)
        case _:
            return harm_json(rng, path, name)


def harm_folder(rng: random.Random, run: pathlib.Path) -> str:
    folder = rng.choice(sorted(path for path in run.rglob('*') if path.is_dir()) or [run])
    name = folder.relative_to(run)
    if rng.random() < 0.4:
        shutil.rmtree(folder)
        if rng.random() < 0.3:
            folder.write_text('')
            return f'{name} is a file'
        return f'{name} deleted'
    names = {'3', '4', '5', '6', '16', '06', 'model', 'optimizer', 'data', 'd', 'x'}
    new = folder.with_name(rng.choice(sorted(names - {folder.name})))
    if new.exists():
        aside = folder.with_name('aside')
        for one, two in ((new, aside), (folder, new), (aside, folder)):
            one.rename(two)
        return f'{name} and {new.name} swapped'
    folder.rename(new)
    return f'{name} renamed to {new.name}'


def harm_json(rng: random.Random, path: pathlib.Path, name: pathlib.Path) -> str:
    """One value of a JSON file, or of one of its lines, replaced, dropped or doubled."""
    try:
        lines = path.read_text().splitlines() if path.name == FILE else [path.read_text()]
        number = rng.randrange(len(lines))
        found = json.loads(lines[number])
    except ValueError:
        path.write_bytes(b'')
        return f'{name} emptied'
    place, key, parent = found, None, None
    while isinstance(place, dict | list) and place and (parent is None or rng.random() < 0.7):
        parent, key = (
            place,
            rng.choice(sorted(place) if isinstance(place, dict) else range(len(place))),
        )
        place = parent[key]
    value = rng.choice(VALUES)
    if parent is None or rng.random() < 0.1:
        found, said = value, f'all is {value!r}'
    elif rng.random() < 0.2:
        del parent[key]
        said = f'{key} dropped'
    elif isinstance(place, int | float) and rng.random() < 0.3:
        parent[key] = place + rng.choice((1, -1, 0.5))
        said = f'{key} is {parent[key]!r} for {place!r}'
    else:
        parent[key] = value
        said = f'{key} is {value!r} for {place!r}'
    lines[number] = json.dumps(found)
    path.write_text('\n'.join([*lines, '']) if path.name == FILE else lines[0])
    return f'{name}: {said}'[:200]


def read(given: Damaged) -> None:
    """As eval.py and train.py do; what is read in silence must be what was written."""
    with contextlib.redirect_stdout(io.StringIO()) as said:
        step, model = resumed(given) if given.resumed else evaluated(given)
    with np.load(given.good / f'{step}.npz') as expected:
        for one, two in zip(jax.tree.leaves(model), expected.values(), strict=True):
            assert np.array_equal(one, two), f'other arrays of step {step} were read'
    quiet = not said.getvalue()
    assert not (quiet and given.step is None and step != STEPS[-1] and newest(given)), (
        'an older checkpoint was taken in silence'
    )
    if given.resumed and quiet:
        kept = [
            line
            for line in (given.good / 'run' / FILE).read_text().splitlines()
            if json.loads(line)['step'] <= step
        ]
        assert (given.run / FILE).read_text().splitlines() == kept, (
            'other metrics were kept in silence'
        )


def newest(given: Damaged) -> bool:
    """Whether the folder of the newest checkpoint is there still."""
    return any(path.is_dir() for path in given.run.glob(f'checkpoints/{STEPS[-1]}*'))


def evaluated(given: Damaged):
    config, model, step = restore_model(given.run, given.step)
    saved, good = (stored.read_saved(run / stored.FILE) for run in (given.run, given.good / 'run'))
    assert saved.bound == good.bound == dataclasses.replace(saved, config=config).bound, (
        'another config was read'
    )
    assert model.cfg == good.model_config, 'another model was read'
    return step, take_apart(model)[1:]


def resumed(given: Damaged):
    config = config_of_run()
    there = stored.read_saved(given.run / stored.FILE)
    if changed := stored.differences(there.config, config):
        raise ValueError(f'another config: {changed}'[:500])
    with Checkpoints(
        given.run, keep=3, saved=stored.saved_of(config, there.earlier)
    ) as checkpoints:
        if not checkpoints.steps():
            raise ValueError('a new run')
        state, iterator, step = checkpoints.restore(trainer().abstract)
        assert iterator == {'next_index': 10 * step}, 'another state of the data was read'
        assert int(state.step) == step and int(state.opt_state[1][0].count) == step, (
            'another state of the optimizer was read'
        )
        MetricsLog(given.run, step, checkpoints.entries(step)['metrics'], 1).__exit__()
    return step, {'params': state.params, 'constants': state.constants}


TARGET = Target(
    make=make,
    read=read,
    prepare=prepare,
    show=lambda given: str(dataclasses.replace(given, good=pathlib.Path())),
)
