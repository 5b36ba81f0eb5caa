"""Measuring claims: the settings of a sweep and their digest, its run, and measured.json."""

import ast
import dataclasses
import datetime
import functools
import importlib
import inspect
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax

from evidence.claims import training
from evidence.claims.claim import Claim, Procedure
from evidence.claims.results import MissingResultError, ResultRows, over_documents
from evidence.experiments import sweep
from evidence.experiments.runs import Run
from posenc_jax import __version__
from posenc_jax.lab.files import disk, json_file
from posenc_jax.lab.runs import entries, stored
from posenc_jax.protocol.errors import nearest

monotonic = time.monotonic  # tests replace it
ROOT = pathlib.Path(__file__).parents[2]
MEASURED = ROOT / 'evidence' / 'measured.json'
RESULTS = ROOT / 'evidence' / 'results'
# Of an earlier record.
KEPT = ('effects', 'documents', 'date', 'commit', 'device', 'versions', 'begun')
NEEDED = {'digest', 'test', 'measure', 'effects', 'results'}  # of a record
# Modules that read options, start runs and write tables.
PLUMBING = tuple(f'evidence.experiments.{name}' for name in ('program', 'runs', 'sweep', 'tables'))
# A run has the same numbers on machines of any number of cores.
ONE_DEVICE = ('--set', 'mesh.cpu_devices=1')


class FailedSweepError(Exception):
    """The program of a sweep ended with an error, which it has printed."""


@dataclasses.dataclass(frozen=True)
class RunCommand:
    """How the runs of a claim are made.

    Attributes:
      command: `python` and its arguments, without the directory.
      name: name of the directory, with the digest of all settings.
      digest: the digest.
    """

    command: tuple[str, ...]
    name: str
    digest: str


def run_command(how: Procedure) -> RunCommand:
    """The command and the digest of a measurement.

    The digest covers, of every run, the fields that change what is trained and that differ from the
    defaults, and the settings of the evaluation. For a sweep that is a program of its own it covers
    its arguments, and the code of that program and of the modules of `evidence` and `configs` that
    it imports, without comments and docstrings. It covers neither the code of the package, nor the
    modules that start runs and write tables, nor the folders from which a name is imported.
    """
    return _run_command(how.sweep, tuple(how.arguments), tuple(how.seeds))


@functools.cache
def _run_command(name: str, arguments: tuple[str, ...], seeds: tuple[int, ...]) -> RunCommand:
    sweeps, of_seeds = sweep.read(name), ('--seeds', *map(str, seeds))
    first = arguments[:1] if sweeps and '' not in sweeps else ()
    if sweeps:
        options = (*arguments[len(first) :], *of_seeds, *ONE_DEVICE)
        settings = _settings(sweeps[first[0] if first else ''], options)
    else:
        options = (*arguments, *of_seeds)
        settings = {'options': options, **_code_of(name)}
    digest = entries.digest(settings)[:12]
    directory = '-'.join((name, *first, digest))
    return RunCommand(('-m', 'evidence.experiments', name, *first, *options), directory, digest)


def _settings(made: sweep.Sweep, options: Sequence[str]) -> dict[str, Any]:
    asked = made.parse(options)
    runs = made.trained(asked)
    settings = {
        'runs': {f'{name}_{seed}': _bound(run) for (name, seed), run in runs.items()},
        'extended': made.extended,
        'evaluation': made.evaluations(asked),
    }
    return {**settings, **_code_of(made.then)} if made.then else settings


def _code_of(name: str) -> dict[str, Any]:
    """The code of a module of `evidence.experiments`, and of what it imports."""
    module = importlib.import_module(f'evidence.experiments.{name}')
    return {'code': _code(module), 'imported': _imported(module)}


def _imported(module: types.ModuleType) -> dict[str, str]:
    """Name -> code of the modules of `evidence` and `configs` that a module imports, directly or
    not.
    """
    found, waiting = {}, [module]
    while waiting:
        for node in ast.walk(ast.parse(inspect.getsource(waiting.pop()))):
            name = node.module if isinstance(node, ast.ImportFrom) else None
            if (
                name
                and name.split('.')[0] in ('evidence', 'configs')
                and name not in (*found, *PLUMBING)
            ):
                own = importlib.import_module(name)
                found[name] = _code(own)
                waiting.append(own)
    return {_last(name): code for name, code in sorted(found.items())}


def _last(name: str) -> str:
    return name.rpartition('.')[2]


def _code(module: types.ModuleType) -> str:
    tree = ast.parse(inspect.getsource(module))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(
            node
        ):
            del node.body[0]
        if isinstance(node, ast.ImportFrom):
            node.module = ''
        if not getattr(node, 'type_params', True):  # Python 3.12 and later
            del node.type_params  # pyright: ignore[reportAttributeAccessIssue]
    empty = {'show_empty': True} if sys.version_info >= (3, 13) else {}
    return ast.dump(tree, **empty)


def _bound(run: Run) -> dict[str, Any]:
    """The fields that change what is trained and that differ from the defaults."""
    found = stored.changes({}, stored.Saved(run.asked()).bound)
    return {name: value for name, (_, value) in found.items()}


def read(path: pathlib.Path | None = None) -> dict[str, dict[str, Any]]:
    """Id -> what was measured; {} if there is no file yet. The file is by default `MEASURED`.

    Raises:
      ValueError: the file is not a ledger.
    """
    path = path or MEASURED
    found = json_file.read_object(path, 'a ledger of claims') if path.is_file() else {}
    for name, record in found.items():
        if not isinstance(record, dict) or not NEEDED <= record.keys():
            raise ValueError(f'{path} is not a ledger of claims: the record of {name} is damaged')
    return found


def is_current(claim: Claim, record: Mapping[str, Any] | None) -> bool:
    """Whether the record was made with the settings, the test, the measure and the margin that the
    claim has now.
    """
    how = claim.how
    return bool(
        record
        and how
        and record['test'] == claim.test
        and record['digest'] == run_command(how).digest
        and record['measure'] == how.fingerprint
    )


def effects(record: Mapping[str, Any]) -> dict[int, float]:
    """Seed -> effect of a record."""
    return {int(seed): value for seed, value in record['effects'].items()}


def minutes(claims: Iterable[Claim], records: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Name of each sweep that claims read -> its minutes on two cores: the largest of what its
    claims state and of what their records took.
    """
    found: dict[str, float] = {}
    for claim in claims:
        if claim.how is not None:
            made, record = run_command(claim.how), records.get(claim.id, {})
            took = record.get('minutes', 0.0) if record.get('digest') == made.digest else 0.0
            found[made.name] = max(found.get(made.name, 0.0), claim.minutes, took)
    return found


def verdict(how: Procedure, record: Mapping[str, Any]) -> str:
    """What follows from a record."""
    return how.verdict(effects(record), record.get('documents'))


def run(command: Sequence[str], keep: int | None) -> int:
    """Runs a program to its end and returns its status. If this process is asked to stop, the
    program and all that it has started are asked too. `keep` is a file descriptor that it inherits.
    """
    passed = () if keep is None else (keep,)
    with subprocess.Popen(command, cwd=ROOT, process_group=0, pass_fds=passed) as process:
        try:
            return process.wait()
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            raise


def run_and_read(
    claim: Claim, workdir: pathlib.Path, keep: int | None = None
) -> tuple[dict[int, float], ResultRows]:
    """Runs the sweep of a claim and reads the effect. Nothing is written outside of `workdir`.

    Args:
      keep: the descriptor of a lock that the sweep holds even if this process is killed.

    Returns:
      Seed -> effect, and the numbers of the runs.

    Raises:
      FailedSweepError: the sweep has failed and has said why.
      MissingResultError: the results lack what the measure reads.
    """
    assert claim.how is not None, f'nothing measures claim {claim.id}'
    made = run_command(claim.how)
    directory = workdir / made.name
    command = [sys.executable, *made.command, '--workdir', str(directory)]
    if status := run(command, keep):
        raise FailedSweepError(f'its sweep ended with status {status}, see above')
    results = ResultRows(directory)
    effects = dict(claim.how.effects(results))
    if lacking := sorted(set(claim.how.seeds) - set(effects)):
        raise MissingResultError(f'claim {claim.id} has no effect for the seeds {lacking}')
    if wrong := {seed: value for seed, value in effects.items() if not math.isfinite(value)}:
        raise MissingResultError(f'claim {claim.id} has effects that are not finite: {wrong}')
    return effects, results


def measure(claim: Claim, workdir: pathlib.Path, keep: int | None = None) -> dict[str, Any]:
    """Measures a claim and writes the effect into the ledger. The numbers of its runs are kept in
    `RESULTS`. Arguments and errors are those of `run_and_read`, and a ValueError if files of the
    code changed meanwhile; after an error nothing is written.

    If the ledger has a record of the same test, and its runs were begun at another time than those
    in `workdir`, that record is kept under 'earlier' in the new one. A record of another test or of
    other settings is kept under 'replaced'.
    """
    assert claim.how is not None, f'nothing measures claim {claim.id}'
    made, commit = run_command(claim.how), _commit()
    begun, began = _begun(workdir / made.name), monotonic()
    effects, results = run_and_read(claim, workdir, keep)
    minutes = (monotonic() - began) / 60
    if (now := _commit()) != commit:
        raise ValueError(
            f'the code was at commit {commit} when claim {claim.id} was begun and is at {now} now; '
            'nothing is recorded; measure in a working tree that stays as it is, such as one of '
            '`git worktree`'
        )
    results.keep(RESULTS / f'{made.name}.csv')
    curves = training.curves(workdir / made.name)
    training.keep(curves, RESULTS / training.KEPT.format(made.name))
    record = {
        'digest': made.digest,
        'test': claim.test,
        'measure': claim.how.fingerprint,
        'effects': {str(seed): round(value, 6) for seed, value in sorted(effects.items())},
        'date': datetime.date.today().isoformat(),
        'commit': commit,
        'device': _device(),
        'minutes': round(minutes, 1),
        'versions': {'posenc_jax': __version__, 'jax': jax.__version__},
        'begun': begun,
        'results': f'{made.name}.csv',
        'training': training.measured(workdir / made.name, curves),
    }
    if scored := [row['tokens'] for row in results.read if row.get('tokens')]:
        record['scored'] = [min(scored), max(scored)]
    if without := claim.how.without_each(results):
        record['without'] = {task: round(effect, 6) for task, effect in without.items()}
    if (interval := over_documents(claim.how.effects, results)) is not None:
        low, high, count = interval
        record['documents'] = {'low': round(low, 6), 'high': round(high, 6), 'count': count}
    before = read().get(claim.id, {})
    past = lambda *more: {name: before[name] for name in (*KEPT, *more) if name in before}
    replaced, earlier = before.get('replaced', []), before.get('earlier', [])
    if before and not is_current(claim, before):
        replaced, earlier = [*replaced, past('test')], []
    elif before.get('begun', before.get('date')) == begun:  # this time they were not trained
        record['minutes'] = max(record['minutes'], before.get('minutes', 0.0))
    elif before:
        earlier = [*earlier, past()]
    record |= {'replaced': replaced} if replaced else {}
    record |= {'earlier': earlier} if earlier else {}
    MEASURED.parent.mkdir(parents=True, exist_ok=True)
    # The file is read again, because another process may have written since.
    disk.write(MEASURED, json.dumps({**read(), claim.id: record}, indent=1) + '\n')
    return record


def check_clean() -> None:
    """Checks that the code is that of a commit, which a record names.

    Raises:
      ValueError: files differ from the commit.
    """
    if (commit := _commit()).endswith('+'):
        raise ValueError(
            f'files differ from commit {commit[:-1]}, and a record names the commit that it was '
            'measured with; commit them, or measure with --sample, which records nothing'
        )


def is_ready(how: Procedure, workdir: pathlib.Path) -> bool:
    """Whether a directory has all results that the measure reads."""
    try:
        return set(how.seeds) <= set(how.effects(ResultRows(workdir / run_command(how).name)))
    except (MissingResultError, ValueError, LookupError, ArithmeticError):
        return False


def _begun(directory: pathlib.Path) -> str:
    """The minute at which the runs in a directory were begun, which a file in it says."""
    path = directory / 'begun'
    if not path.is_file():
        there = directory.exists()  # begun before such files were written: only the day is known
        date = datetime.date.fromtimestamp(directory.stat().st_mtime) if there else None
        directory.mkdir(parents=True, exist_ok=True)
        now = datetime.datetime.now().isoformat(timespec='minutes')
        disk.write(path, f'{date.isoformat() if date else now}\n')
    return path.read_text().strip()


def verdicts(claim: Claim, record: Mapping[str, Any]) -> list[str]:
    """The verdict of each time that a claim was measured with its present settings in a new
    directory, the last one at the end.
    """
    assert claim.how is not None
    return [verdict(claim.how, found) for found in (*record.get('earlier', []), record)]


def _commit() -> str:
    """The commit of the code, with '+' if files differ from it or modules are in no commit, apart
    from what this command writes; '' outside a repository.
    """
    ask = lambda *words: subprocess.run(
        ['git', *words], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    commit = ask('rev-parse', '--short=12', 'HEAD')
    written = ('docs', 'evidence/measured.json', 'evidence/results', 'posenc_jax/verdicts.csv')
    besides = [f':!{path}' for path in written]
    changed = ask('status', '--porcelain', '-uno', '--', '.', *besides)
    folders = ('posenc_jax', 'evidence', 'configs')
    unknown = ask('ls-files', '--others', '--exclude-standard', '--', *folders, *besides)
    return commit + '+' if commit and (changed or unknown) else commit


def _device() -> str:
    device = jax.devices()[0]
    return device.device_kind if device.platform != 'cpu' else f'cpu, {os.cpu_count()} cores'


def chosen(claims: Mapping[str, Claim], ids: Sequence[str]) -> list[Claim]:
    """The claims with these ids.

    Raises:
      ValueError: an id does not exist, or nothing measures its claim yet.
    """
    for name in ids:
        if name not in claims:
            raise ValueError(
                f'there is no claim {name!r}; {nearest(name, claims, "docs/claims.md")}'
            )
        if claims[name].how is None:
            raise ValueError(
                f'nothing measures claim {name} yet; the test would be: {claims[name].test}'
            )
    return [claims[name] for name in dict.fromkeys(ids)]
