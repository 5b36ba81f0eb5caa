"""The training loop: from a config to a directory with checkpoints, metrics and an evaluation."""

import contextlib
import functools
import math
import pathlib
import time
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from posenc_jax.attention.kernels import sizes as kernel_sizes
from posenc_jax.attention.library import choice as library
from posenc_jax.base import interrupts, targets
from posenc_jax.base.derivatives import precision
from posenc_jax.lab.cluster.cluster import Cluster
from posenc_jax.lab.cluster.stop import StopSignal
from posenc_jax.lab.cluster.stragglers import Stragglers
from posenc_jax.lab.config.fields import encoding_label
from posenc_jax.lab.evaluate.results import print_tables
from posenc_jax.lab.evaluate.run import evaluate_runs
from posenc_jax.lab.files import paths
from posenc_jax.lab.files.checkpoint_files import run_told
from posenc_jax.lab.files.json_file import listed
from posenc_jax.lab.files.lock import HeldError, hold
from posenc_jax.lab.files.saved_steps import finished_steps
from posenc_jax.lab.runs import initial, stored
from posenc_jax.lab.runs.checkpoint import CheckpointError, Checkpoints, everywhere
from posenc_jax.lab.runs.run import Run, imported, resolve
from posenc_jax.lab.runs.state import TrainState
from posenc_jax.lab.tasks import batch_iterator
from posenc_jax.lab.train.batches import WHOLE, Shard, device_batch, shard_of
from posenc_jax.lab.train.metrics import MetricsLog, Progress, Unreported
from posenc_jax.lab.train.step import Metrics, Trainer, make_trainer
from posenc_jax.layer.sharding import split_cpu
from posenc_jax.protocol.errors import quoted

# A file in the run directory. Process 0 holds its lock while the run is trained and evaluated.
LOCK = 'training.lock'


class ConfigChangedError(ValueError):
    """The run directory belongs to another config; the message lists the differences."""


class NonFiniteError(ArithmeticError):
    """Training produced a number that is not finite; the message names the step and where in the
    step it arose.
    """


def train(
    config: ConfigDict,
    *,
    cluster: Cluster | None = None,
    resume_changed: bool = False,
    trust_imports: bool = False,
) -> pathlib.Path:
    """Trains a run to its last step, from its newest checkpoint if it has one, and evaluates it.

    A run that is killed at any moment and started again has the same losses, bit for bit, on the
    same machine. SIGTERM or Ctrl-C saves a checkpoint and ends the training early.

    Args:
      config: see lab/config/defaults.py.
      cluster: the processes that train together; None for a single process.
      resume_changed: whether the run is continued even if its config has changed.
      trust_imports: whether code that `init.source` brings may be executed, see `run.trust`. Code
        in the directory of the run itself is never executed: `config.imports` says what is.

    Returns:
      The run directory, which holds config.json, metrics.jsonl, tensorboard/, checkpoints/ and
      eval/.

    Raises:
      ValueError: the config (before any device is used), the text, the mesh or the checkpoints are
        wrong.
      DiskFullError: there is no room for a file; the message names the step that is safe.
      UntrustedError: `init.source` brings code, and `trust_imports` is False.
      ConfigChangedError: the directory belongs to a run with another config, or with one that is
        not known.
      HeldError: other processes are training the run.
      ClusterError: processes that should train together did not connect.
      NonFiniteError: a loss, gradient or parameter is not finite; the last checkpoint is kept.
      UnreachableError: a bucket cannot be read or written; the message names the step that is safe.
      SystemExit: the run was asked to stop, and `cluster.stop_status` is not 0.

    Example:
      config = defaults.get_config()
      config.train.steps = 100
      directory = train(config)
    """
    config = imported(config)
    source = initial.open_initial(
        config.init.source, config.init.extend, trust_imports=trust_imports
    )
    run = resolve(initial.resolve(config, source))
    initial.check(run.config, source, run.model)
    train_run(run, source, cluster=cluster, resume_changed=resume_changed)
    return run.directory


def train_run(
    run: Run,
    source: initial.Initial | None = None,
    *,
    cluster: Cluster | None = None,
    resume_changed: bool = False,
) -> None:
    """Trains a run that `resolve` has checked; see `train`. `source` has its initial weights."""
    config, directory = run.config, run.directory
    _ = run.tuned  # raises before a device is used

    def datasets(shard):
        return {
            split: run.task.dataset(
                length=run.length,
                batch_size=config.train.batch,
                seed=config.seed,
                split=split,
                shard=shard,
            )
            for split in (('train', 'validation') if config.train.eval_every else ('train',))
        }

    # One process has all rows. Several know theirs when they have met and there is a mesh.
    data = datasets(WHOLE) if cluster is None else None
    sizes = dict(config.mesh)
    count, alone = sizes.pop('cpu_devices'), sizes == dict(data=-1, fsdp=1, tensor=1, sequence=1)
    if count or (cluster is None and alone):
        split_cpu(config.train.batch // config.train.accumulate, count)
    joined = (
        contextlib.nullcontext() if cluster is None else cluster.joined(config.cluster, directory)
    )
    with run_told(directory), contextlib.ExitStack() as until_done:
        with StopSignal() as stop, joined as peers:
            mesh = run.mesh
            if config.model.implementation in kernel_sizes.KERNELS:
                kernel_sizes.target()  # refuses a platform without kernels before anything is made
            trainer = make_trainer(run, mesh)
            shard = shard_of(trainer.batch_sharding, config.train.batch)
            data = datasets(shard) if data is None else data
            # `telling` begins before any process waits for the others.
            telling = contextlib.nullcontext() if peers is None else peers.telling()
            with jax.set_mesh(mesh):
                _hold(directory, until_done)
                saved = _open(run, resume_changed)
                with (
                    Checkpoints(directory, keep=config.train.keep, saved=saved) as checkpoints,
                    telling,
                ):
                    if resume_changed:
                        checkpoints.accept()
                    given = functools.partial(initial.initial_params, source, run.model, mesh)
                    finished = _run(run, trainer, given, checkpoints, data, shard, stop)
            # A signal may also have come while the last checkpoint was written, to any process.
            done = everywhere(finished and not stop.asked)
            evaluates = done and config.eval.at_end
            together = jax.process_count() > 1
            if evaluates and together:  # while the processes are connected
                _evaluate(run)
        if evaluates and not together:
            _evaluate(run)
    if not done and config.cluster.stop_status:
        raise SystemExit(config.cluster.stop_status)


def _hold(directory: pathlib.Path, until: contextlib.ExitStack) -> None:
    """Takes the lock of the run directory in process 0, on behalf of all processes. If it cannot be
    taken, all of them raise.
    """
    problem = None
    if jax.process_index() == 0:
        instead = 'give this run another name (--config.name=...)'
        try:
            until.enter_context(hold(directory / LOCK, f'{directory} is being trained', instead))
        except (ValueError, OSError) as error:
            problem = error
    if not everywhere(problem is None):
        raise problem or HeldError(
            f'{directory}: process 0 did not get {LOCK}; its own message says why'
        )


def _open(run: Run, resume_changed: bool) -> stored.Saved:
    """The content that `config.json` will have, after a comparison with the file that exists."""
    config, directory = run.config, run.directory
    with paths.reached(directory):
        begun = finished_steps(directory)
    if resume_changed or not begun:
        return run.saved()
    path = directory / stored.FILE
    otherwise = (
        'give the run another name (--config.name=...), or continue it all the same with '
        '--resume_changed'
    )
    if not path.exists():
        raise ConfigChangedError(
            f'{directory} has checkpoints, but no {stored.FILE}, so their config is not known; '
            f'{otherwise}'
        )
    there = stored.read_saved(path)
    if changed := stored.differences(there.config, config):
        raise ConfigChangedError(f'{path} holds another config: {listed(changed)}; {otherwise}')
    return run.saved(there.earlier)


def _run(
    run: Run,
    trainer: Trainer,
    given: Callable,
    checkpoints: Checkpoints,
    data,
    shard: Shard,
    stop: StopSignal,
) -> bool:
    """Trains from the newest checkpoint, or from the parameters of `given()`. Returns whether it
    reached the last step without being asked to stop.
    """
    config, directory, width = run.config, run.directory, run.problem.width(run.config)
    settings, first = config.train, jax.process_index() == 0
    batches = batch_iterator(data['train'])
    if checkpoints.steps():
        state, iterator, step = checkpoints.restore(trainer.abstract)
        _continue_data(batches, iterator, f'checkpoint {step} of {checkpoints.directory}')
        written = checkpoints.entries(step).get('metrics')
    else:
        state, step, written = trainer.init(given()), 0, None
    if first:  # only now is it certain that the existing checkpoints can be continued
        stored.write(checkpoints.saved, directory / stored.FILE)
    if step < settings.steps:
        checkpoints.need_room(trainer.abstract)  # before steps are computed that cannot be saved
    log = MetricsLog(directory, step, written, settings.log_every) if first else Unreported()
    progress = Progress(step, settings.steps, settings.batch * width) if first else Unreported()
    saved, unchecked, stragglers = step, None, Stragglers()
    with log, progress:
        _announce(run, trainer, progress, step)
        while step < settings.steps:
            with stragglers.waiting():
                batch = device_batch(next(batches), trainer.batch_sharding, shard)
            with library.taken() as attention:  # empty once the step is traced
                state, metrics = trainer.step(state, batch)
            if attention:
                progress.say(f'attention: {"; ".join(attention)}')
            step += 1
            if unchecked is not None:  # checks the step before while this one is computed
                check_finite(*unchecked, saved)
            unchecked = step, metrics
            end, stopping = step == settings.steps, stop.requested(step)
            saves = end or stopping or step % settings.save_every == 0
            if saves or step == 1 or step % settings.log_every == 0:
                values, slow = check_finite(step, metrics, saved), stragglers.named()
                speed = progress.report(step, values['loss'], slow)
                log.write(step, {**values, 'tokens_per_second': speed, 'time': time.time()})
            with progress.paused():
                if settings.eval_every and (end or step % settings.eval_every == 0):
                    progress.show(text='validating')
                    found = validate(
                        run, trainer, state, data['validation'], settings.eval_batches, shard
                    )
                    log.write(step, found)
                    numbers = '  '.join(f'{name} {value:.4f}' for name, value in found.items())
                    progress.say(f'step {step}/{settings.steps}  {numbers}')
                if saves:
                    log.flush()  # a bucket then has every line up to this checkpoint
                    checkpoints.save(step, state, batches.get_state(), log.written)
                    saved = step
            if stopping:
                progress.say(
                    f'stopped after step {step}, which is saved; the same command continues'
                )
                return False
    return True


def _announce(run: Run, trainer: Trainer, progress: Progress | Unreported, step: int) -> None:
    """Says what is trained, and from which step on."""
    config, steps = run.config, run.config.train.steps
    count = lambda tree: sum(a.size for a in jax.tree.leaves(tree))
    parameters, tuned = count(trainer.abstract.params), count(trainer.tuned)
    part = '' if tuned == parameters else f' ({tuned:,} of them trained)'
    devices = f'{jax.device_count()} x {jax.devices()[0].device_kind}'
    if config.init.source:
        progress.say(f'weights of {config.init.source}')
    encoding = encoding_label(config)
    progress.say(f'{run.directory}: {encoding}, {parameters:,} parameters{part}, {devices}')
    model = config.model
    products = targets.float32_products(model.precision or precision())
    if products and (model.dtype == 'float32' or model.kind == 'field'):
        instead = 'JAX_DEFAULT_MATMUL_PRECISION=highest'
        instead = instead if model.kind == 'field' else '--config.model.precision=highest'
        progress.say(f'products of float32 are computed in {products} unless {instead}')
    if step:
        done = 'trained already, to' if step >= steps else 'continuing after'
        progress.say(f'{done} step {step} of {steps}')


def _continue_data(batches, place, where: str) -> None:
    """Continues the batches at the place that a checkpoint has."""
    try:
        batches.set_state(place)
    except Exception as error:  # the type depends on what is wrong with the place
        raise CheckpointError(
            f'{where}: the data cannot be continued at {quoted(place)} ({type(error).__name__}); '
            'put back a copy of the checkpoint, or move it away to continue from an earlier one'
        ) from error


def check_finite(step: int, metrics: Metrics, saved: int) -> dict[str, float]:
    """The metrics of a step as numbers; waits until they are computed.

    Args:
      step: the step, for the message.
      metrics: see `train_step`.
      saved: the step of the last checkpoint, or 0, for the message.

    Raises:
      NonFiniteError: a metric is not finite.
    """
    values = {name: float(value) for name, value in metrics.items()}
    for name, what in (
        ('loss', 'the loss, in the forward pass from finite parameters'),
        ('grad_norm', 'the gradient, in the backward pass of a finite loss'),
        ('param_norm', 'a parameter, in the update by a finite gradient'),
    ):
        if not math.isfinite(values[name]):
            numbers = ', '.join(f'{key} {value:.4g}' for key, value in values.items())
            kept = (
                f'the checkpoint of step {saved} is kept'
                if saved
                else 'no checkpoint had been saved'
            )
            raise NonFiniteError(
                f'step {step}: {what}, is {values[name]} ({numbers}); {kept}. '
                'A lower train.lr, a longer train.warmup or a smaller train.clip may help'
            )
    return values


def validate(
    run: Run, trainer: Trainer, state: TrainState, dataset, batches: int, shard: Shard
) -> dict[str, float]:
    """Evaluates the first `batches` batches of a dataset, which has the rows of `shard`. Returns
    what `Problem.means` makes of the sums: the mean loss and accuracy over the scored targets and,
    where the rows have answers, the share of rows whose targets are all correct.
    """
    totals: dict[str, float] = {}
    for number in range(min(batches, len(dataset))):
        sums = trainer.evaluate(state, device_batch(dataset[number], trainer.batch_sharding, shard))
        totals = {name: totals.get(name, 0.0) + float(value) for name, value in sums.items()}
    found = run.problem.means(totals)
    return {f'validation_{name}': value for name, value in found.items()}


def _evaluate(run: Run) -> None:
    """Evaluates a run on the devices of all processes; process 0 prints and writes the results."""
    first, directory = jax.process_index() == 0, run.directory
    saved = f'{directory} is trained and saved'
    stopping = f'stopping; {saved}, and eval.py --run={directory} evaluates it'
    if jax.process_count() > 1:  # the signal has gone to JAX, see `StopSignal`
        stopping = f'stopping after the evaluation; {saved}'
    with interrupts.announced(lambda: stopping):
        if first:
            print(f'evaluating {directory}', flush=True)
        results = evaluate_runs([run])
        if not first:
            return
        print_tables(results)
        for path in results.write(directory / 'eval'):
            print(path, flush=True)
