"""Evaluation of training runs from their directories alone."""

import dataclasses
import datetime
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
from flax import nnx

import posenc_jax
from posenc_jax.core import spec as spec_language
from posenc_jax.core.registry import SpecError, check_choice
from posenc_jax.evaluation import language
from posenc_jax.evaluation.overrides import apply_overrides
from posenc_jax.evaluation.results import Results, RunResult
from posenc_jax.evaluation.scoring import scorer
from posenc_jax.evaluation.tasks import SEED, evaluate_task
from posenc_jax.model.transformer import Transformer
from posenc_jax.tasks import Task
from posenc_jax.training import checkpoint
from posenc_jax.training import config as configs


def evaluate(runs: Sequence[str | pathlib.Path], overrides: Mapping[str, Any] | None = None) -> Results:
    """Evaluates runs by the settings of their own configs, as changed by `overrides`.

    Everything that can be wrong without reading a checkpoint is checked for all runs first: fields, protocols, lengths
    against the text and against every encoding.

    Args:
      runs: run directories. 'DIRECTORY | EXTENSION' applies a context extension to this one alone, so that a run can be
        compared with its own extension: 'runs/rope | yarn(factor=4.0)'.
      overrides: dotted names -> values or strings, e.g. {'eval.lengths': (64, 128), 'extend': 'pi(factor=2.0)'}.
        `eval.positions` = 'sampled' lets encodings with random positions draw them at evaluation as in training,
        'first' leaves them to their evaluation rule.

    Raises:
      FileNotFoundError: no such run directory.
      ValueError: no checkpoint, anything wrong with the settings, or a length that an encoding does not reach.

    Example:
      results = evaluate(['runs/rope', 'runs/rope | yarn(factor=4.0)'], {'eval.lengths': (128, 1024)})
      results.write(pathlib.Path('comparison'))
    """
    jobs = [_prepare(str(run), overrides or {}) for run in dict.fromkeys(map(str, runs))]
    versions = {'posenc_jax': posenc_jax.__version__, 'jax': jax.__version__, 'flax': flax.__version__}
    date = datetime.datetime.now(datetime.UTC).isoformat(timespec='seconds')
    return Results(tuple(_evaluate(job) for job in jobs), date, versions)


@dataclasses.dataclass(frozen=True)
class _Job:
    directory: pathlib.Path
    config: Any
    task: Task
    lengths: tuple[int, ...]

    def rows(self, width: int) -> int:
        """Rows read at once: as many tokens as `eval.batch` rows of the trained length, at least one row."""
        batch = self.config.eval.batch
        return max(1, min(batch, batch * self.task.width(self.config.train.length) // width))


def _prepare(run: str, overrides: Mapping[str, Any]) -> _Job:
    """Reads and checks what a run will be asked, without its weights."""
    directory, _, extension = run.partition('|')
    directory = pathlib.Path(directory.strip())
    if not directory.is_dir():
        raise FileNotFoundError(f'no such run directory: {directory}')
    if extension:
        overrides = {**overrides, 'extend': extension.strip()}
    config = apply_overrides(configs.from_json(directory / 'config.json'), overrides)
    task = configs.make_task(config)
    lengths = tuple(dict.fromkeys(config.eval.lengths)) or tuple(n * config.train.length for n in (1, 2, 4, 8))
    for length in lengths:
        if isinstance(length, bool) or not isinstance(length, int) or length < 1:
            raise SpecError(f'eval.lengths must be positive integers, got {config.eval.lengths}')
    check_choice('eval.positions', config.eval.positions, ('sampled', 'first'))
    if config.extend:
        spec_language.parse(config.extend, ('extension', 'frequencies'))
    if task.is_language:
        if config.model.kind != 'decoder':
            raise SpecError(f'{directory}: perplexity needs a decoder; model.kind is {config.model.kind!r}')
        targets = len(task.tokens(config.eval.split)) - 1
        language.plan(
            targets, lengths, tuple(config.eval.protocols), tokens=config.eval.tokens, stride=config.eval.stride
        )
    _check_reach(directory, config, task, lengths)
    with checkpoint.Checkpoints(directory) as found:  # raises where the folder is missing
        if not found.steps():
            raise checkpoint.CheckpointError(f'{directory} has no finished checkpoint')
    return _Job(directory, config, task, lengths)


def _check_reach(directory, config, task, lengths):
    """Traces the model at every length without computing anything: an encoding that does not reach so far raises."""

    def build():
        model = Transformer(configs.model_config(config, task), rngs=nnx.Rngs(0))
        return model.extend(config.extend) if config.extend else model

    graphdef, state = nnx.split(nnx.eval_shape(build))
    for length in lengths:
        tokens = jax.ShapeDtypeStruct((1, task.width(length)), jnp.int32)
        try:
            jax.eval_shape(lambda state, tokens: nnx.merge(graphdef, state).hidden(tokens), state, tokens)
        except ValueError as error:
            raise SpecError(f'{directory} at length {length}: {error}') from error


def _evaluate(job: _Job) -> RunResult:
    config, settings = job.config, job.config.eval
    incidental = ('seed', *configs.FREE_FIELDS)
    _, model, step = checkpoint.restore_model(job.directory)
    if model.cfg.vocab_size != job.task.vocab_size:
        raise SpecError(
            f'{job.directory} was trained on {model.cfg.vocab_size} token ids; {config.task} has {job.task.vocab_size}'
        )
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    if config.extend:
        model = model.extend(config.extend)
    key = jax.random.key(SEED) if settings.positions == 'sampled' else None
    score = scorer(model)
    if job.task.is_language:
        measurements = language.evaluate_language(
            score,
            job.task.tokens(settings.split),
            job.lengths,
            tuple(settings.protocols),
            tokens=settings.tokens,
            rows=job.rows,
            stride=settings.stride,
            buckets=settings.buckets,
            key=key,
        )
    else:
        measurements = evaluate_task(
            score, job.task, job.lengths, samples=settings.samples, rows=job.rows, split=settings.split, key=key
        )
    return RunResult(
        run=str(job.directory),
        encoding=' / '.join(config.pattern) or config.encoding,
        extend=config.extend,
        task=config.task,
        dataset=config.data.dataset if job.task.is_language else '',
        split=settings.split,
        positions=settings.positions,
        seed=config.seed,
        step=step,
        train_length=config.train.length,
        parameters=parameters,
        settings={k: v for k, v in configs.fields_of(config).items() if not k.startswith(incidental)},
        measurements=tuple(measurements),
    )

