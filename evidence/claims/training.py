"""What the runs of a sweep were given, and how their loss still fell at the end.

A record of the ledger has under 'training' the least and the largest number of

  parameters  of the models
  batches     updates of the parameters
  rows        rows of a batch
  length      tokens of a row, or what else `train.length` counts for the task
  fell        how far the mean loss fell from the fourth to the last fifth of the batches, as a
              share of that of the fourth

and under 'scored' how many tokens, points or answers are behind a number of its measure.
The curves lie beside the numbers of the runs in `evidence/results/`.
"""

import csv
import io
import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence

import jax
from flax import nnx
from ml_collections import ConfigDict

from evidence.claims.claim import Procedure
from evidence.experiments import sweep
from posenc_jax.lab.files import disk
from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.run import Run

Curve = Sequence[tuple[int, float]]
LOGGED = 'metrics.jsonl'  # in a run directory
PARTS = 20  # of a learning curve
KEPT = '{}-curves.csv'  # in `evidence/results/`, for the name of a sweep


def given(configs: Iterable[ConfigDict]) -> dict[str, list[int]]:
    """What runs with these configs were given; `parameters` is left out where a model cannot be
    built, for instance without the weights that it starts from.
    """
    found: dict[str, set[int]] = {}
    for config in configs:
        train = config.train
        numbers = dict(batches=train.steps, rows=train.batch, length=train.length)
        for name, number in numbers.items():
            found.setdefault(name, set()).add(number)
        try:
            shapes = jax.tree.leaves(nnx.state(Run.of(config).model, nnx.Param))
        except (ValueError, OSError, ImportError):
            continue
        found.setdefault('parameters', set()).add(sum(a.size for a in shapes))
    return {name: [min(own), max(own)] for name, own in found.items()}


def declared(how: Procedure) -> dict[str, list[int]]:
    """What the runs of a procedure are given; {} if its sweep is a program of its own."""
    sweeps, arguments = sweep.read(how.sweep), list(how.arguments)
    if not sweeps:
        return {}
    group = '' if '' in sweeps else arguments.pop(0)
    made = sweeps[group]
    asked = made.parse([*arguments, '--seeds', str(how.seeds[0])])
    return given(run.asked() for run in made.trained(asked).values())


def curve(path: pathlib.Path) -> Curve:
    """The training loss that a run has logged, as (step, mean since the last step) in `PARTS`
    parts.
    """
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    logged = [(row['step'], row['loss']) for row in rows if 'loss' in row]
    last, parts = logged[-1][0], {}
    for step, loss in logged:
        parts.setdefault(math.ceil(step * PARTS / last), []).append((step, loss))
    return [(own[-1][0], statistics.fmean(loss for _, loss in own)) for own in parts.values()]


def fell(found: Curve) -> float | None:
    """How far the loss fell from the fourth to the last fifth of a curve, as a share; None if a
    fifth has no point.
    """
    last = found[-1][0]
    fifth = lambda low, high: [loss for step, loss in found if low * last < step <= high * last]
    before, end = fifth(0.6, 0.8), fifth(0.8, 1.0)
    if not before or not end or not (start := statistics.fmean(before)):
        return None
    return (start - statistics.fmean(end)) / abs(start)


def curves(directory: pathlib.Path) -> dict[str, Curve]:
    """Name of a run -> its curve, of the runs in a directory."""
    logs = sorted(directory.glob(f'*/{LOGGED}'))
    return {path.parent.name: curve(path) for path in logs}


def keep(found: Mapping[str, Curve], path: pathlib.Path) -> None:
    """Writes the curves of runs as a table; nothing without any run."""
    if not found:
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator='\n')
    table.writerow(('run', 'step', 'loss'))
    table.writerows(
        (name, step, f'{loss:.5g}') for name, own in found.items() for step, loss in own
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    disk.write(path, text.getvalue())


def measured(directory: pathlib.Path, curves: Mapping[str, Curve]) -> dict[str, Sequence[float]]:
    """What the runs in a directory were given, and how their loss fell in their curves."""
    by_name = {path.parent.name.rsplit('_', 1)[0]: path for path in directory.glob('*/config.json')}
    found: dict[str, Sequence[float]] = {**given(map(stored.from_json, by_name.values()))}
    falls = [share for own in curves.values() if (share := fell(own)) is not None]
    return found | ({'fell': [round(min(falls), 4), round(max(falls), 4)]} if falls else {})


def range_text(numbers: Mapping[str, Sequence[float] | None], name: str) -> str:
    """A range, such as '83k to 1.2M'; '' if it is not known.

    Example:
      >>> range_text({'parameters': [83456, 1234567]}, 'parameters')
      '83k to 1.2M'
    """
    if (found := numbers.get(name)) is None:
        return ''
    made = '{:.0%}'.format if name == 'fell' else short
    low, high = map(made, found)
    return low if low == high else f'{low} to {high}'


def short(number: float) -> str:
    """A count with three digits at most, such as '83k', '1.2M' or '512'."""
    for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
        if number >= size:
            return f'{number / size:.{0 if number >= 10 * size else 1}f}{letter}'
    return f'{number:g}'
