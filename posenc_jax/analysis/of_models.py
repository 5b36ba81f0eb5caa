"""The commands of the analyses that read whole models: from options to tables and files."""

import argparse
import pathlib
from collections.abc import Callable
from typing import NamedTuple

from posenc_jax.analysis.reading import Subject, folder_of, subjects
from posenc_jax.analysis.report import Report


class Command(NamedTuple):
    """An analysis of a model.

    Attributes:
      batches: sequences that are read unless --batches says otherwise.
      measure: from the options and a model to a result.
      report: from the results by name of the model to the report.
    """

    batches: int
    measure: Callable
    report: Callable[[dict], Report]


def probe_position(known: argparse.Namespace, subject: Subject):
    from posenc_jax.analysis.probe_position import probe_position

    return probe_position(subject.model, subject.sequences(known, 256), probe=known.probe)


def variance_shrinkage(known: argparse.Namespace, subject: Subject):
    from posenc_jax.analysis.variance_shrinkage import variance_shrinkage

    return variance_shrinkage(subject.model, subject.sequences(known, 256))


def nearby_similarity(known: argparse.Namespace, subject: Subject):
    from posenc_jax.analysis.nearby_similarity import nearby_similarity

    return nearby_similarity(subject.model, subject.sequences(known, 128))


def permutation_symmetry(known: argparse.Namespace, subject: Subject):
    from posenc_jax.analysis.permutation_symmetry import permutation_symmetry

    return permutation_symmetry(subject.model, subject.sequences(known, 128))


def _report(module: str, name: str) -> Callable[[dict], Report]:
    """The function `name` of a module of this folder, imported when it is called."""

    def report(found: dict) -> Report:
        from importlib import import_module

        return getattr(import_module(f'posenc_jax.analysis.{module}'), name)(found)

    return report


COMMANDS = {
    'probe_position': Command(64, probe_position, _report('probe_position', 'probe_report'))
}


def run(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    """Measures the models, prints the table, writes the files and returns their paths."""
    command = COMMANDS[known.analysis]
    if known.batches is None:
        known.batches = command.batches
    models = subjects(known, rest)
    found = {one.label: command.measure(known, one) for one in models}
    report = command.report(found)
    print(report.text(), flush=True)
    return report.write(folder_of(known, known.run or ''))
