"""The files of a search: its whole state after every iteration, and the scores found since."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from posenc_jax.core import disk
from posenc_jax.run.json_file import listed
from posenc_jax.search.evolution import Objective, State
from posenc_jax.search.genome import Genome
from posenc_jax.search.target import Target, spec_of


class SettingsChangedError(ValueError):
    """The file belongs to a search with other arguments; the message lists the differences."""


def read(path: pathlib.Path, asked: Mapping[str, Any]) -> tuple[State | None, dict[str, Any]]:
    """The state in a file, and all its fields; None and {} where there is no file.

    Raises:
      SettingsChangedError: the file belongs to other settings than those in `asked`.
      ValueError: it was not written by a search.
    """
    if not path.exists():
        return None, {}
    try:
        fields = json.loads(path.read_text())
        stored, state = fields['settings'], State.from_json(fields['state'])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(
            f'{path} was not written by a search of longrope factors ({error!r}); choose another '
            '--out'
        ) from None
    asked = json.loads(json.dumps(asked))
    differs = [name for name, value in asked.items() if stored.get(name) != value]
    changed = [f'{name}: {stored.get(name)!r} there, {asked[name]!r} here' for name in differs]
    if changed:
        raise SettingsChangedError(
            f'{path} is of a search with other arguments: {listed(changed)}; give the arguments '
            'it was begun with to continue it, '
            'or another --out'
        )
    return state, fields


def write(
    path: pathlib.Path, asked: Mapping[str, Any], target: Target, state: State, **found
) -> None:
    """Writes the file of a search; it is complete or as it was before."""
    fields = {
        'settings': asked,
        'iteration': state.iteration,
        'evaluations': len(state.history),
        'state': state.to_json(),
        'trace': state.trace,
        'best': {
            'perplexity': state.trace[-1],
            'start': state.best.start,
            'factors': state.best.factors,
        },
        **found,
        'spec': spec_of(target.rule(state.best)),
    }
    disk.write(path, json.dumps(fields) + '\n')


def remembered(path: pathlib.Path, asked: Mapping[str, Any], objective: Objective) -> Objective:
    """The objective with every score appended to a file as it is found, and none found twice: an
    iteration that is cut short begins again, from the same random state, but not from nothing.

    Args:
      path: of the scores; begun anew where it belongs to other settings.
      asked: the settings.
    """
    head = json.dumps(asked)
    lines = path.read_text().splitlines() if path.exists() else []
    known = {}
    if lines[:1] == [head]:
        for line in lines[1:]:
            try:
                score, start, factors = json.loads(line)
            except ValueError:
                break  # cut short while it was written
            known[Genome(tuple(factors), start)] = score
    rows = [json.dumps([score, genome.start, genome.factors]) for genome, score in known.items()]
    disk.write(path, '\n'.join([head, *rows, '']))
    file = disk.Appended(path)

    def scored(genome):
        if genome not in known:
            known[genome] = float(objective(genome))
            file.write((json.dumps([known[genome], genome.start, genome.factors]) + '\n').encode())
        return known[genome]

    return scored
