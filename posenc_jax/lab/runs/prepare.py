"""A run or public checkpoint to evaluate: its config and task, checked before weights are read."""

import dataclasses
import difflib
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from posenc_jax.lab.config import defaults, field_settings
from posenc_jax.lab.config.overrides import COMPUTING, apply_overrides, replaced
from posenc_jax.lab.files import paths
from posenc_jax.lab.pretrained import is_pretrained, load_pretrained
from posenc_jax.lab.pretrained.fields import is_file, is_folder
from posenc_jax.lab.pretrained.load import architecture_of
from posenc_jax.lab.pretrained.sources import open_source
from posenc_jax.lab.runs import restore, stored
from posenc_jax.lab.runs.run import LONGEST_NAME, Run
from posenc_jax.lab.runs.sizes import make_task, task_call
from posenc_jax.layer.sharding import split_cpu
from posenc_jax.protocol.calls import Node
from posenc_jax.protocol.errors import SpecError, quoted, shortened

_MOST_SHOWN = 20  # runs in an error message
_LONGEST_LABEL = 60  # characters of what a comparison is named after
# Settings for a caller that needs only the model and the text of a run: with them `prepare` checks
# as little as possible.
UNASKED = {'eval.lengths': (1,), 'eval.stride': 1, 'eval.protocols': ('nonoverlapping',)}


def home_of(run: str) -> pathlib.Path:
    """The folder for results about a run: its directory; runs/NAME-PLACE for a public checkpoint.

    PLACE is the first six digits of a digest of the path, so that checkpoints of the same name have
    separate folders.

    Example:
      >>> home_of('runs/rope | yarn(factor=4.0)').as_posix()
      'runs/rope'
    """
    path = directory_of(run)
    if not is_pretrained(path):
        return path
    path = path.expanduser().resolve()
    place = hashlib.sha256(os.fsencode(path)).hexdigest()[:6]
    return pathlib.Path('runs', f'{path.stem if path.is_file() else path.name}-{place}')


def results_folder(runs: Sequence[str], also: Sequence[pathlib.Path] = ()) -> pathlib.Path:
    """The folder for the results of an evaluation: `eval` in the home of one run, and for a
    comparison a folder in `comparisons` there, named after what the first run is compared with.

    A digest at the end of its name stands for all runs, so every comparison has its own folder.

    Args:
      runs: as for `home_of`.
      also: folders of earlier results that are compared.

    Example:
      >>> results_folder(['runs/rope']).as_posix()
      'runs/rope/eval'
      >>> results_folder(['runs/rope', 'runs/alibi | pi(factor=2)']).parent.as_posix()
      'runs/rope/comparisons'
    """
    home = home_of(runs[0])
    if len(runs) == 1 and not also:
        return home / 'eval'
    places = [(directory_of(run), run.partition('|')[2].strip()) for run in runs]
    places += [(folder, '') for folder in also]
    all_of_them = '|'.join(f'{paths.resolved(place)}|{spec}' for place, spec in places)
    digest = hashlib.sha256(os.fsencode(all_of_them)).hexdigest()[:6]
    name = lambda place: (place.parent if place.name == 'eval' else place).name
    others = '-'.join(f'{name(place)} {spec}' for place, spec in places[1:])
    label = re.sub(r'[^\w.]+', '-', others)[:_LONGEST_LABEL].strip('-')
    return home / 'comparisons' / f'{label}-{digest}'


def directory_of(run: str) -> pathlib.Path:
    """The directory (or file) of the run in 'RUN' or 'RUN | EXTENSION'."""
    return paths.path(run.partition('|')[0].strip())


def prepare(run: str, overrides: Mapping[str, Any], *, trust_imports: bool = False) -> Run:
    """Reads the config of a run and checks the settings of its evaluation, without its weights. The
    CPU is split first, if `mesh.cpu_devices` is given.

    Args:
      run: 'RUN' or 'RUN | EXTENSION'; RUN is a run directory or a public checkpoint.
      overrides: dotted names -> values that replace fields of the config.
      trust_imports: whether code that the run brings may be executed, see `run.trust`.

    Raises:
      FileNotFoundError: there is no such run.
      UntrustedError: the run brings code, and `trust_imports` is False.
      ValueError: the settings do not fit the run; an extension is given twice.
    """
    directory, (_, _, extension) = directory_of(run), run.partition('|')
    if (name := 'mesh.cpu_devices') in overrides:  # before a device is used
        config = replaced(defaults.get_config(), {name: overrides[name]})
        split_cpu(config.eval.batch, config.mesh.cpu_devices)
    if extension:
        if overrides.get('extend'):
            raise SpecError(
                f'{run} names an extension and config.extend={overrides["extend"]!r} another; '
                'leave one out'
            )
        overrides = {**overrides, 'extend': extension.strip()}
    if is_pretrained(directory):
        return _prepare_pretrained(directory, overrides)
    if not is_folder(directory):
        raise FileNotFoundError(_missing(directory))
    saved = restore.read_run(directory, trust_imports=trust_imports)
    if field_settings.is_field(saved.config) and UNASKED.items() <= overrides.items():
        raise SpecError(f'{directory} is a field, which reads points; it has no text to read')
    config = apply_overrides(saved.config, overrides)
    call = task_call(config)
    cfg = saved.computed(overrides).model_config
    task, asks = make_task(config, call), asks_for_mesh(overrides)
    return _checked(Run(directory, config, task, cfg, asks_for_mesh=asks), call)


def _missing(directory: pathlib.Path) -> str:
    """The message about a path that is no directory: which runs there are beside it."""
    named = lambda path: shortened(str(path), 200)
    if not paths.is_local(directory):
        return f'no such run directory: {named(directory)}'
    parent = directory.parent
    if is_file(directory):
        instead = f'; did you mean {parent}?' if (parent / stored.FILE).is_file() else ''
        return (
            f'{named(directory)} is a file; expected a run directory, a Hugging Face directory or '
            f'a .gguf file{instead}'
        )
    hint = f'{named(parent)} {"holds no run" if is_folder(parent) else "does not exist"}'
    for folder in filter(is_folder, (parent / 'runs', parent)):
        runs = sorted(path.parent.name for path in folder.glob(f'*/{stored.FILE}'))
        if close := difflib.get_close_matches(directory.name[:LONGEST_NAME], runs, n=1):
            hint = f'did you mean {folder / close[0]}?'
        elif runs:
            more = f' and {len(runs) - _MOST_SHOWN} more' if len(runs) > _MOST_SHOWN else ''
            hint = f'the runs in {folder}: {", ".join(map(quoted, runs[:_MOST_SHOWN]))}{more}'
    return f'no such run directory: {named(directory)}; {hint}'


def _prepare_pretrained(path: pathlib.Path, overrides: Mapping[str, Any]) -> Run:
    """`prepare` for a public checkpoint, whose own tokenizer reads the text. All other settings are
    the defaults.
    """
    cfg = architecture_of(open_source(path)).cfg
    config = defaults.get_config().unlock()
    config.encoding, config.pattern, config.train.length = cfg.encoding, cfg.pattern, cfg.train_len
    # `init.source` distinguishes the settings of two checkpoints in a comparison.
    config.init.source = config.data.tokenizer = str(path)
    config.model.update({name: getattr(cfg, name) for name in config.model})
    config = apply_overrides(config.lock(), overrides)
    own = {name.removeprefix('model.'): config[name] for name in COMPUTING}
    cfg = dataclasses.replace(cfg, **own)
    load = lambda run, mesh: (load_pretrained(path, mesh=mesh, **own).model, 0)
    call = task_call(config)
    run = Run(path, config, make_task(config, call), cfg, load, asks_for_mesh(overrides))
    return _checked(run, call)


def asks_for_mesh(overrides: Mapping[str, Any]) -> bool:
    """Whether some of these fields are of the mesh."""
    return any(name.startswith('mesh.') for name in overrides)


def _checked(run: Run, call: Node) -> Run:
    try:
        if field_settings.is_field(run.config):
            field_settings.check_applies(run.config, call)
        run.check_evaluation()
    except ValueError as error:
        raise SpecError(f'{run.directory}: {error}') from error
    return run
