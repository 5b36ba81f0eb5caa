"""The commands of the analyses that read whole models: from options to tables and files."""

import argparse
import pathlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from posenc_jax.analysis.reading import Subject, folder_of, subjects


class Command(NamedTuple):
    """An analysis of a model: the function KEY of the module KEY of this folder.

    Attributes:
      report: name of the function in that module that makes the report.
      batches: sequences that are read unless --batches says otherwise.
      longest: tokens of a sequence at most unless --length says otherwise.
      options: names of options that the function takes.
      measure: what is called in place of the function on sequences: (options, subject) -> result.
    """

    report: str
    batches: int
    longest: int
    options: tuple[str, ...] = ()
    measure: Callable[[argparse.Namespace, Subject], Any] | None = None


COMMANDS = {
    'probe_position': Command('probe_report', 64, 256, ('probe',)),
    'variance_shrinkage': Command('shrinkage_report', 16, 256),
    'nearby_similarity': Command('similarity_report', 16, 128),
    'permutation_symmetry': Command('symmetry_report', 4, 128),
    'causal_mask_pattern': Command('pattern_report', 16, 128),
    'rope_frequency_usage': Command('usage_report', 4, 512),
    'positional_neurons': Command('neurons_report', 128, 128),
}


def run(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    """Measures the models, prints the table, writes the files and returns their paths."""
    command, module = COMMANDS[known.analysis], f'posenc_jax.analysis.{known.analysis}'
    if known.batches is None:
        known.batches = command.batches
    found, of = {}, import_module(module)
    for subject in subjects(known, rest):
        if command.measure is not None:
            found[subject.label] = command.measure(known, subject)
            continue
        options = {name: getattr(known, name) for name in command.options}
        tokens = subject.sequences(known, command.longest)
        found[subject.label] = getattr(of, known.analysis)(subject.model, tokens, **options)
    report = getattr(of, command.report)(found)
    print(report.text(), flush=True)
    return report.write(folder_of(known, known.run or ''))
