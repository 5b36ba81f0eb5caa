"""Evaluation of training runs and public checkpoints."""

import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax
import jax
from flax import nnx

from posenc_jax import __version__
from posenc_jax.lab.config import settings
from posenc_jax.lab.config.fields import encoding_label, fields_of
from posenc_jax.lab.config.protocols import check_stride
from posenc_jax.lab.evaluate import field_points, language
from posenc_jax.lab.evaluate.generator import generator
from posenc_jax.lab.evaluate.measurement import Measurement
from posenc_jax.lab.evaluate.results import Results
from posenc_jax.lab.evaluate.samples import read_samples
from posenc_jax.lab.evaluate.scoring import scorer
from posenc_jax.lab.evaluate.series import RunResult
from posenc_jax.lab.evaluate.tasks import evaluate_task
from posenc_jax.lab.files import paths
from posenc_jax.lab.model.kinds import Model
from posenc_jax.lab.runs import stored
from posenc_jax.lab.runs.prepare import directory_of, prepare
from posenc_jax.lab.runs.problem import SEED
from posenc_jax.lab.runs.run import Run
from posenc_jax.layer.sharding import whole_rows


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
      trust_imports: whether code that the runs bring may be executed, see `lab/runs/trust.py`.

    Raises:
      FileNotFoundError: a run directory does not exist.
      UntrustedError: a run brings code, and `trust_imports` is False.
      ValueError: there is no checkpoint, a setting is wrong, an encoding does not reach a length, a
        model sees what it should predict, or a likelihood is not finite.

    Example:
      results = evaluate(['runs/rope', 'runs/rope | yarn(factor=4.0)'], {'eval.tokens': 4096})
      results.write(pathlib.Path('comparison'))
    """
    return evaluate_runs(prepared(runs, overrides or {}, trust_imports), also=also, after=after)


def prepared(
    runs: Sequence[str | pathlib.Path], overrides: Mapping[str, Any], trust_imports: bool = False
) -> list[Run]:
    """The runs of an evaluation, with their settings checked; arguments and errors as for
    `evaluate`.
    """
    asked: dict[tuple, str] = {}
    for run in map(str, runs):  # a run that is named by two paths would pass for two seeds
        asked.setdefault((paths.resolved(directory_of(run)), run.partition('|')[2].strip()), run)
    found = [prepare(run, overrides, trust_imports=trust_imports) for run in asked.values()]
    if 'eval.stride' in overrides:
        for run in found:
            _check_stride(run)
    return found


def evaluate_runs(
    runs: Sequence[Run],
    *,
    also: Sequence[RunResult] = (),
    after: Callable[[Results], Any] = lambda results: None,
) -> Results:
    """Evaluates runs whose settings `prepare` or `resolve` has checked; see `evaluate`."""
    versions = {'posenc_jax': __version__, 'jax': jax.__version__, 'flax': flax.__version__}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    results = Results(tuple(also), date, versions)
    for run in runs:
        results = dataclasses.replace(results, runs=(*results.runs, _evaluate(run)))
        after(results)
    return results


def _check_stride(run: Run) -> None:
    """Raises ValueError if a stride that was given is longer than the shortest length; the default
    follows the length.
    """
    asked = run.config.eval
    if run.task.is_language and {'sliding', 'same_tokens'} & set(asked.protocols):
        check_stride(asked.stride, min(settings.lengths_of(run.config)))


def _evaluate(run: Run) -> RunResult:
    config, asked = run.config, run.config.eval
    incidental = ('seed', *stored.FREE_FIELDS)
    # Samples of a model of classes, and the points of a field, are computed on one device.
    model, step = run.load(None if run.problem.alone else run.mesh)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    try:
        found = MEASURED.get(run.problem.kind, _of_answers)(run, run.extended(model))
    except ValueError as error:
        raise ValueError(f'{run.directory}: {error}') from error
    return RunResult(
        run=str(run.directory),
        encoding=encoding_label(config),
        extend=config.extend,
        task=config.task,
        dataset=config.data.dataset if run.task.is_language else '',
        split=asked.split,
        positions=asked.positions,
        seed=config.seed,
        step=step,
        train_length=config.train.length,
        parameters=parameters,
        counted='' if run.task.is_language else run.task.counted.format(run.task),
        chance=1 / run.task.output_size if run.problem.kind == 'classes' else None,
        settings={k: v for k, v in fields_of(config).items() if not k.startswith(incidental)},
        **found,
    )


def _of_answers(run: Run, model: Model) -> dict[str, Any]:
    return {'measurements': tuple(measure(run, model))}


def _of_field(run: Run, model: Model) -> dict[str, Any]:
    fitted = field_points.fit(model, run.task, settings.lengths_of(run.config))
    return {
        'measurements': tuple(field_points.measure(fitted, run.cfg)),
        'fitted': fitted,
        'class_map': field_points.draw_map(model, run.task),
    }


def _of_classes(run: Run, model: Model) -> dict[str, Any]:
    asked, lengths = run.config.eval, settings.lengths_of(run.config)
    given = dict(samples=asked.samples, split=asked.split, key=_key(asked))
    return {**_of_answers(run, model), 'samples': read_samples(model, run.task, lengths, **given)}


def _of_text(run: Run, model: Model) -> dict[str, Any]:
    asked, lengths = run.config.eval, settings.lengths_of(run.config)
    given = dict(tokens=asked.tokens, stride=asked.stride)
    return {
        **_of_answers(run, model),
        **language.of_tables(run.task, asked.split, lengths, tuple(asked.protocols), **given),
    }


# Kind of a problem -> the fields of `RunResult` that are measured of a run and its extended model.
MEASURED = {'field': _of_field, 'classes': _of_classes, 'text': _of_text}


def _key(asked: Any) -> jax.Array | None:
    return jax.random.key(SEED) if asked.positions == 'sampled' else None


def measure(run: Run, model: Model) -> list[Measurement]:
    """Measures a transformer by the settings of a run.

    Args:
      run: its task and settings are used.
      model: `run.extended(model)`, or another model to evaluate in the same way.
    """
    asked, lengths = run.config.eval, settings.lengths_of(run.config)
    key, mesh = _key(asked), run.mesh
    score = scorer(model, mesh)
    rows = lambda width: whole_rows(mesh, run.rows(width))
    if run.task.is_language:
        return language.evaluate_language(
            score,
            run.task.tokens(asked.split),
            lengths,
            tuple(asked.protocols),
            tokens=asked.tokens,
            rows=rows,
            stride=asked.stride,
            buckets=asked.buckets,
            bytes_of=run.task.bytes_of,
            key=key,
            places=run.task.places(asked.split),
            documents=run.task.document_of(asked.split),
        )
    return evaluate_task(
        score,
        run.task,
        lengths,
        samples=asked.samples,
        rows=rows,
        split=asked.split,
        key=key,
        depths=tuple(asked.depths),
        new_tokens=generator(model, mesh) if asked.decode else None,
    )
