"""The inputs of the command line of the analyses: a run, its model, and its sequences."""

import argparse
import glob
import pathlib
from typing import NamedTuple

import numpy as np

from posenc_jax.lab.config.fields import encoding_label
from posenc_jax.lab.config.overrides import read_overrides
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.pretrained import is_pretrained
from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.prepare import UNASKED, asks_for_mesh, directory_of, home_of, prepare
from posenc_jax.lab.runs.restore import read_run
from posenc_jax.lab.runs.run import Run
from posenc_jax.lab.runs.sizes import make_task
from posenc_jax.protocol.errors import check_choice

INPUTS = ('text', 'random')


def folder_of(known: argparse.Namespace) -> pathlib.Path:
    """Where the results go."""
    usual = home_of(known.run) / 'analysis' if known.run else pathlib.Path('runs', 'analysis')
    return known.out or usual


def _prepared(known: argparse.Namespace, rest: list[str], run: str) -> Run:
    """A run, of which nothing is checked that only an evaluation needs."""
    if known.batches < 1 or known.length < 0:
        raise ValueError(
            '--batches must be at least 1 and --length at least 0 (0: the trained length), got '
            f'{known.batches} and {known.length}'
        )
    overrides = read_overrides(rest)
    if asks_for_mesh(overrides):
        raise ValueError('an analysis uses one device; leave out the fields of config.mesh')
    fields = {**overrides, **UNASKED, **_task_length(known, run)}
    return prepare(run, fields, trust_imports=known.trust_imports)


def _task_length(known: argparse.Namespace, run: str) -> dict[str, tuple[int]]:
    """`eval.lengths` for a run that was trained on a task: the length that is analysed.

    Without it length 1 is checked, which every text has, but not every task.
    """
    directory = directory_of(run)
    if not (directory / stored.FILE).is_file():
        return {}
    config = read_run(directory, trust_imports=known.trust_imports).config
    if make_task(config).is_language:
        return {}
    return {'eval.lengths': (known.length or config.train.length,)}


def matching(pattern: str) -> list[str]:
    """The training runs that match a pattern, sorted.

    Raises:
      ValueError: there is none.
    """
    found = [path for path in glob.glob(pattern) if pathlib.Path(path, stored.FILE).is_file()]
    if not found:
        raise ValueError(
            f'no training run matches --runs={pattern!r} (a run is a directory with a '
            f'{stored.FILE})'
        )
    return sorted(found)


class Subject(NamedTuple):
    """A model that is analysed: a name for tables and pictures, and its run."""

    label: str
    job: Run

    def load(self) -> Transformer:
        """The model, with its context extension.

        Raises:
          ValueError: it is no transformer.
        """
        model = self.job.extended(self.job.load()[0])
        if not isinstance(model, Transformer):
            raise ValueError(f'{self.job.directory} is not a transformer, which analyses read')
        return model

    def sequences(self, known: argparse.Namespace, most: int = 0) -> np.ndarray:
        """Token ids [batches, length]: the first windows of its text, or random ids.

        Args:
          known: the options; without --length, the trained length.
          most: the largest length that is taken without --length; 0 for any.

        Raises:
          ValueError: a run without text, or with too little of it.
        """
        check_choice('--inputs', known.inputs, INPUTS)
        job, count = self.job, known.batches
        length = known.length or min(job.cfg.train_len, most or job.cfg.train_len)
        if known.inputs == 'random':
            drawn = np.random.default_rng(0).integers(job.cfg.vocab_size, size=(count, length))
            return drawn.astype(np.int32)
        if not job.task.is_language:
            raise ValueError(
                f'{job.directory} was trained on {job.config.task}, which is not text; give '
                '--inputs=random, or a run of language()'
            )
        stream = job.task.tokens(job.config.eval.split)
        if len(stream) < length * count:
            raise ValueError(
                f'{count} windows of {length} need {length * count} tokens, but the text has '
                f'{len(stream)}; give a smaller --length or --batches'
            )
        return np.asarray(stream[: length * count]).reshape(count, length)


def subject(known: argparse.Namespace, rest: list[str], run: str | None) -> Subject:
    """The model of a run.

    Raises:
      ValueError: no run, or one that is no decoder or encoder of token ids.
    """
    if not run:
        raise ValueError(f'{known.analysis} analyses a model; give --run=RUN')
    job = _prepared(known, rest, run)
    if not job.cfg.vocab_size or getattr(job.cfg, 'kind', '') == 'encoder_decoder':
        raise ValueError(
            f'{run} is not a decoder or encoder of token ids, which {known.analysis} reads'
        )
    return Subject(_label(run, job), job)


def subjects(known: argparse.Namespace, rest: list[str]) -> list[Subject]:
    """The models of --run=RUN or --runs=PATTERN, with names that differ.

    Raises:
      ValueError: none or both of the options; the errors of `subject`.
    """
    if bool(known.run) == bool(known.runs):
        raise ValueError(
            f'{known.analysis} analyses models; give --run=RUN or --runs=PATTERN'
            + (', not both' if known.run else '')
        )
    found = [
        subject(known, rest, run) for run in ([known.run] if known.run else matching(known.runs))
    ]
    names = [one.label for one in found]
    return [
        one._replace(label=f'{one.label} ({directory_of(str(one.job.directory)).name})')
        if names.count(one.label) > 1
        else one
        for one in found
    ]


def _label(run: str, job: Run) -> str:
    path = directory_of(run)
    name = path.stem if is_pretrained(path) else encoding_label(job.config)
    return f'{name} | {job.config.extend}' if job.config.extend else name
