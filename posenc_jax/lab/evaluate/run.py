"""Evaluation of training runs and public checkpoints."""

import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
from flax import nnx

from posenc_jax.lab.config import field_settings, settings
from posenc_jax.lab.config.fields import encoding_label, fields_of
from posenc_jax.lab.config.protocols import check_stride
from posenc_jax.lab.evaluate import field_points, language
from posenc_jax.lab.evaluate.generator import generator
from posenc_jax.lab.evaluate.measurement import Measurement
from posenc_jax.lab.evaluate.results import Results
from posenc_jax.lab.evaluate.samples import Samples, read_samples
from posenc_jax.lab.evaluate.scoring import scorer
from posenc_jax.lab.evaluate.series import RunResult
from posenc_jax.lab.evaluate.tasks import evaluate_task
from posenc_jax.lab.files import paths
from posenc_jax.lab.model.field import Field
from posenc_jax.lab.model.kinds import Model
from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.job import SEED, Job, directory_of, mesh_of, prepare
from posenc_jax.lab.tasks.class_task import ClassTask
from posenc_jax.lab.tasks.language.language import Language
from posenc_jax.layer.sharding import whole_rows
from posenc_jax.version import __version__


def evaluate(
    runs: Sequence[str | pathlib.Path],
    overrides: Mapping[str, Any] | None = None,
    *,
    also: Sequence[RunResult] = (),
    after: Callable[[Results], Any] = lambda results: None,
    trust_imports: bool = False,
) -> Results:
    """Evaluates runs by the settings of their own configs, as changed by `overrides`.

    Errors that can be found without the weights are raised for all runs first: fields, protocols,
    and lengths that the text or an encoding does not reach.

    Args:
      runs: run directories, or public checkpoints (see `load_pretrained`). 'DIRECTORY | EXTENSION'
        applies a context extension to this run alone, so that a run can be compared with its own
        extension: 'runs/rope | yarn(factor=4.0)'.
      overrides: dotted names -> values or strings, e.g. {'eval.lengths': (64, 128), 'extend':
        'pi(factor=2.0)'}. `eval.positions` = 'sampled' draws random positions as in training;
        'first' uses the evaluation rule of the encoding.
      also: results of earlier evaluations, see `results.read`, to compare with these.
      after: called after every run with the results so far, e.g. to write them.
      trust_imports: whether code that the runs bring may be executed, see `run.trust`.

    Raises:
      FileNotFoundError: a run directory does not exist.
      UntrustedError: a run brings code, and `trust_imports` is False.
      ValueError: there is no checkpoint, a setting is wrong, an encoding does not reach a length, a
        model sees what it should predict, or a likelihood is not finite.

    Example:
      results = evaluate(['runs/rope', 'runs/rope | yarn(factor=4.0)'], {'eval.tokens': 4096})
      results.write(pathlib.Path('comparison'))
    """
    asked: dict[tuple, str] = {}
    for run in map(str, runs):  # a run that is named by two paths would pass for two seeds
        asked.setdefault((paths.resolved(directory_of(run)), run.partition('|')[2].strip()), run)
    jobs = [prepare(run, overrides or {}, trust_imports=trust_imports) for run in asked.values()]
    for job in jobs:
        _check_stride(job, overrides or {})
    versions = {'posenc_jax': __version__, 'jax': jax.__version__, 'flax': flax.__version__}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    results = Results(tuple(also), date, versions)
    for job in jobs:
        results = dataclasses.replace(results, runs=(*results.runs, _evaluate(job)))
        after(results)
    return results


def _check_stride(job: Job, overrides: Mapping[str, Any]) -> None:
    """Raises ValueError if a stride that was given is longer than the shortest length; the default
    follows the length.
    """
    strides = isinstance(job.task, Language) and {'sliding', 'same_tokens'} & set(
        job.config.eval.protocols
    )
    if strides and 'eval.stride' in overrides:
        check_stride(job.config.eval.stride, min(settings.lengths_of(job.config)))


def _evaluate(job: Job) -> RunResult:
    config, asked = job.config, job.config.eval
    incidental = ('seed', *stored.FREE_FIELDS)
    # Samples of a model of classes, and the points of a field, are computed on one device.
    alone = isinstance(job.task, ClassTask) or field_settings.is_field(config)
    model, step = job.load(None if alone else mesh_of(job))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    fitted: tuple[field_points.Fitted, ...] = ()
    class_map: field_points.ClassMap | None = None
    samples: tuple[Samples, ...] = ()
    of_ngrams: dict[str, float] = {}
    try:
        if isinstance(model, Field):
            fitted = field_points.fit(model, job.task, settings.lengths_of(config))
            measurements = field_points.measure(fitted, job.cfg)
            class_map = field_points.draw_map(model, job.task)
        else:
            model = job.extended(model)
            measurements = measure(job, model)
            if isinstance(job.task, ClassTask):
                samples = read_samples(
                    model,
                    job.task,
                    settings.lengths_of(config),
                    samples=asked.samples,
                    split=asked.split,
                    key=_key(asked),
                )
            if isinstance(job.task, Language):
                of_ngrams = language.of_tables(
                    job.task,
                    asked.split,
                    settings.lengths_of(config),
                    tuple(asked.protocols),
                    tokens=asked.tokens,
                    stride=asked.stride,
                )
    except ValueError as error:
        raise ValueError(f'{job.directory}: {error}') from error
    return RunResult(
        run=str(job.directory),
        encoding=encoding_label(config),
        extend=config.extend,
        task=config.task,
        dataset=config.data.dataset if job.task.is_language else '',
        split=asked.split,
        positions=asked.positions,
        seed=config.seed,
        step=step,
        train_length=config.train.length,
        parameters=parameters,
        settings={k: v for k, v in fields_of(config).items() if not k.startswith(incidental)},
        measurements=tuple(measurements),
        fitted=fitted,
        class_map=class_map,
        samples=samples,
        **of_ngrams,
    )


def _key(asked: Any) -> jax.Array | None:
    return jax.random.key(SEED) if asked.positions == 'sampled' else None


def measure(job: Job, model: Model) -> list[Measurement]:
    """Measures a transformer by the settings of a job.

    Args:
      job: its task and settings are used.
      model: `job.extended(model)`, or another model to evaluate in the same way.
    """
    asked, lengths = job.config.eval, settings.lengths_of(job.config)
    key, mesh = _key(asked), mesh_of(job)
    score = scorer(model, mesh)
    rows = lambda width: whole_rows(mesh, job.rows(width))
    if job.task.is_language:
        return language.evaluate_language(
            score,
            job.task.tokens(asked.split),
            lengths,
            tuple(asked.protocols),
            tokens=asked.tokens,
            rows=rows,
            stride=asked.stride,
            buckets=asked.buckets,
            bytes_of=job.task.bytes_of,
            key=key,
            places=job.task.places(asked.split),
            documents=job.task.document_of(asked.split),
        )
    return evaluate_task(
        score,
        job.task,
        lengths,
        samples=asked.samples,
        rows=rows,
        split=asked.split,
        key=key,
        depths=tuple(asked.depths),
        new_tokens=generator(model, mesh) if asked.decode else None,
    )
