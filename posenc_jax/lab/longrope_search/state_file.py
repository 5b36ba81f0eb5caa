"""The files of a search: its whole state after every iteration, and the scores found since."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from posenc_jax.lab.files import disk, regular
from posenc_jax.lab.files.json_file import listed
from posenc_jax.lab.longrope_search.evolution import Objective, State
from posenc_jax.lab.longrope_search.genome import Genome
from posenc_jax.lab.longrope_search.target import Target, spec_of

EARLIER = {'objective': 'perplexity'}  # settings that files of earlier versions do not have


class SettingsChangedError(ValueError):
    """The file belongs to a search with other arguments; the message lists the differences."""


def read(path: pathlib.Path, asked: Mapping[str, Any]) -> tuple[State | None, dict[str, Any]]:
    """The state of the search in a file, and all fields of the file; (None, {}) if there is none.

    Raises:
      SettingsChangedError: the file belongs to other settings than those in `asked`.
      ValueError: the file was not written by a search.
    """
    if not path.exists():
        return None, {}
    text = regular.read_text(path)
    try:
        fields = json.loads(text)
        stored, state = {**EARLIER, **fields['settings']}, State.from_json(fields['state'])
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise ValueError(
            f'{path} was not written by a search of longrope factors ({error!r}); choose another '
            '--out'
        ) from None
    asked = json.loads(json.dumps(asked))
    differs = [name for name, value in asked.items() if stored.get(name) != value]
    changed = [f'{name}: {stored.get(name)!r} there, {asked[name]!r} here' for name in differs]
    if changed:
        raise SettingsChangedError(
            f'{path} belongs to a search with other arguments: {listed(changed)}; give the '
            'arguments of that search to continue it, or another --out'
        )
    return state, fields


def write(
    path: pathlib.Path, asked: Mapping[str, Any], target: Target, state: State, **found
) -> None:
    """Writes the file of a search. If the writing is interrupted, the old file remains."""
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
    """The objective with its scores kept in a file: every new score is appended, and a genome that
    is in the file is not scored again.

    An interrupted iteration begins again from the same random state, so it meets the same genomes
    and finds their scores in the file.

    Args:
      path: file of the scores; a file that belongs to other settings is replaced.
      asked: settings of the search.
      objective: gives a score to a genome.
    """
    head = json.dumps(asked)
    lines = regular.read_text(path).splitlines() if path.exists() else []
    known = {}
    if lines[:1] == [head]:
        for line in lines[1:]:
            try:
                score, start, factors = json.loads(line)
            except ValueError:
                break  # the process was stopped while it wrote this line
            known[Genome(tuple(factors), start)] = score
    rows = [json.dumps([score, genome.start, genome.factors]) for genome, score in known.items()]
    disk.write(path, '\n'.join([head, *rows, '']))
    file = disk.appended(path)

    def scored(genome):
        if genome not in known:
            known[genome] = float(objective(genome))
            file.write((json.dumps([known[genome], genome.start, genome.factors]) + '\n').encode())
        return known[genome]

    return scored
