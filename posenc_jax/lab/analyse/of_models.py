"""The commands of the analyses that read whole models: from options to tables and files."""

import argparse
import pathlib
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from posenc_jax.lab.analyse.reading import Subject, folder_of, subjects


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


def symbols_of(known: argparse.Namespace, subject: Subject) -> tuple[int, int]:
    """The ids of the two texts of --symbols, see `id_of`.

    Raises:
      ValueError: not two texts, or one of them is not one token.
    """
    texts = known.symbols.split(',')
    if len(texts) != 2:
        raise ValueError(
            f'--symbols are two texts with a comma between them, got {known.symbols!r}'
        )
    return id_of(subject, '--symbols are', texts[0]), id_of(subject, '--symbols are', texts[1])


def id_of(subject: Subject, option: str, text: str) -> int:
    """The id of a text of one token; in a task that is not text, the id that is written. `option`
    begins the message of an error, e.g. '--symbols are'.

    Raises:
      ValueError: the text is not one token, or no id.
    """
    task = subject.job.task
    if not task.is_language:
        if not (text.isascii() and text.isdigit() and len(text) < 10):
            raise ValueError(
                f'{subject.job.directory} reads no text: {option} given by number, got {text!r}'
            )
        return int(text)
    front = len(task.encode(''))  # tokens that begin a document
    ids = list(task.encode(text))[front:]
    if len(ids) != 1:
        raise ValueError(f'{option} of one token, {text!r} has {len(ids)}')
    return int(ids[0])


def powers(
    known: argparse.Namespace, subject: Subject, first: int, most: int, tokens: int = 1
) -> list[int]:
    """The powers of two from `first` on, of so many tokens each and two more, that have room in
    --length, or in the trained length and are at most `most`.
    """
    room = (known.length or min(subject.job.cfg.train_len, (most + 2) * tokens)) // tokens - 2
    if room < first:
        raise ValueError(
            f'{known.analysis} needs a length of at least {(first + 2) * tokens} tokens'
        )
    return [2**k for k in range(room.bit_length()) if first <= 2**k <= room]


def _squashed(known: argparse.Namespace, subject: Subject):
    from posenc_jax.lab.analyse.collapse_and_oversquashing import collapse_and_oversquashing

    return collapse_and_oversquashing(
        subject.model,
        subject.sequences(known, 128),
        pair=symbols_of(known, subject),
        counts=powers(known, subject, 1, 512),
        # Above this width the exact derivatives take too many backward passes.
        probes=None if subject.job.cfg.width <= 64 else 8,
    )


def _gap(known: argparse.Namespace, subject: Subject):
    from posenc_jax.lab.analyse.martingale_gap import martingale_gap

    symbols = symbols_of(known, subject)
    separator = id_of(subject, '--separator is', known.separator) if known.separator else None
    counts = powers(known, subject, 2, 64, tokens=2 if known.separator else 1)
    number = known.batches
    return martingale_gap(
        subject.model,
        symbols,
        separator=separator,
        counts=counts,
        sequences=number,
        batch=min(number, 32),
    )


def _bias(known: argparse.Namespace, subject: Subject):
    from posenc_jax.lab.analyse.embedding_position_bias import embedding_position_bias

    tokens = subject.sequences(known, 256)
    batch = min(known.batches, 16)
    return embedding_position_bias(subject.model, tokens, pool=known.pool, batch=batch)


COMMANDS = {
    'probe_position': Command('probe_report', 64, 256, ('probe',)),
    'variance_shrinkage': Command('shrinkage_report', 16, 256),
    'nearby_similarity': Command('similarity_report', 16, 128),
    'permutation_symmetry': Command('symmetry_report', 4, 128),
    'causal_mask_pattern': Command('pattern_report', 16, 128),
    'rope_frequency_usage': Command('usage_report', 4, 512),
    'rope_usage': Command('usage_report', 4, 512),
    'positional_neurons': Command('neurons_report', 128, 128),
    'collapse_and_oversquashing': Command('squashed_report', 4, 0, measure=_squashed),
    'martingale_gap': Command('gap_report', 16, 0, measure=_gap),
    'embedding_position_bias': Command('bias_report', 8, 256, measure=_bias),
}


def run(known: argparse.Namespace, rest: list[str]) -> list[pathlib.Path]:
    """Measures the models, prints the table, writes the files and returns their paths."""
    command, module = COMMANDS[known.analysis], f'posenc_jax.lab.analyse.{known.analysis}'
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
