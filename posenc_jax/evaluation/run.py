"""Evaluation of training runs from their directories alone."""

import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
from flax import nnx

from posenc_jax.evaluation import language
from posenc_jax.evaluation.measurement import Measurement
from posenc_jax.evaluation.results import Results, RunResult
from posenc_jax.evaluation.scoring import scorer
from posenc_jax.evaluation.tasks import evaluate_task
from posenc_jax.model.transformer import Transformer
from posenc_jax.run import config as configs
from posenc_jax.run import settings
from posenc_jax.run.job import SEED, Job, directory_of, prepare
from posenc_jax.version import __version__


def evaluate(
    runs: Sequence[str | pathlib.Path],
    overrides: Mapping[str, Any] | None = None,
    *,
    also: Sequence[RunResult] = (),
    after: Callable[[Results], Any] = lambda results: None,
) -> Results:
    """Evaluates runs by the settings of their own configs, as changed by `overrides`.

    Everything that can be wrong without reading a checkpoint is checked for all runs first: fields,
    protocols, lengths against the text and against every encoding.

    Args:
      runs: run directories, or public checkpoints (see `load_pretrained`). 'DIRECTORY | EXTENSION'
        applies a context extension to this one alone, so that a run can be compared with its own
        extension: 'runs/rope | yarn(factor=4.0)'.
      overrides: dotted names -> values or strings, e.g. {'eval.lengths': (64, 128), 'extend':
        'pi(factor=2.0)'}. `eval.positions` = 'sampled' lets encodings with random positions draw
        them at evaluation as in training, 'first' leaves them to their evaluation rule.
      also: runs that were evaluated before, see `results.read`, to stand beside these.
      after: called with what there is after every run, e.g. to write it.

    Raises:
      FileNotFoundError: no such run directory.
      ValueError: no checkpoint, anything wrong with the settings, a length that an encoding does
        not reach, a model that sees what it should predict, or a likelihood that is not finite.

    Example:
      results = evaluate(['runs/rope', 'runs/rope | yarn(factor=4.0)'], {'eval.lengths': (128,
      1024)}) results.write(pathlib.Path('comparison'))
    """
    asked: dict[tuple, str] = {}
    for run in map(str, runs):  # the same run by another path would pass for a second seed
        asked.setdefault(
            (directory_of(run).expanduser().resolve(), run.partition('|')[2].strip()), run
        )
    jobs = [prepare(run, overrides or {}) for run in asked.values()]
    versions = {'posenc_jax': __version__, 'jax': jax.__version__, 'flax': flax.__version__}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    results = Results(tuple(also), date, versions)
    for job in jobs:
        results = dataclasses.replace(results, runs=(*results.runs, _evaluate(job)))
        after(results)
    return results


def _evaluate(job: Job) -> RunResult:
    config, asked = job.config, job.config.eval
    incidental = ('seed', *configs.FREE_FIELDS)
    model, step = job.load()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    try:
        measurements = measure(job, job.extended(model))
    except ValueError as error:
        raise ValueError(f'{job.directory}: {error}') from error
    return RunResult(
        run=str(job.directory),
        encoding=' / '.join(config.pattern) or config.encoding,
        extend=config.extend,
        task=config.task,
        dataset=config.data.dataset if job.task.is_language else '',
        split=asked.split,
        positions=asked.positions,
        seed=config.seed,
        step=step,
        train_length=config.train.length,
        parameters=parameters,
        settings={
            k: v for k, v in configs.fields_of(config).items() if not k.startswith(incidental)
        },
        measurements=tuple(measurements),
    )


def measure(job: Job, model: Transformer) -> list[Measurement]:
    """What the settings of a job ask, of a model that may be another than `job.extended(model)`."""
    asked, lengths = job.config.eval, settings.lengths_of(job.config)
    key = jax.random.key(SEED) if asked.positions == 'sampled' else None
    score = scorer(model)
    if job.task.is_language:
        return language.evaluate_language(
            score,
            job.task.tokens(asked.split),
            lengths,
            tuple(asked.protocols),
            tokens=asked.tokens,
            rows=job.rows,
            stride=asked.stride,
            buckets=asked.buckets,
            bytes_of=job.task.bytes_of,
            key=key,
            places=job.task.places(asked.split),
        )
    return evaluate_task(
        score,
        job.task,
        lengths,
        samples=asked.samples,
        rows=job.rows,
        split=asked.split,
        key=key,
        depths=tuple(asked.depths),
    )
