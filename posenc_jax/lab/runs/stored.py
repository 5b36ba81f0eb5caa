"""The file `config.json` of a run: its config, and the sizes of the model that its task sets."""

import dataclasses
import difflib
import json
import pathlib
from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from posenc_jax.lab.config import defaults
from posenc_jax.lab.config.fields import fields_of
from posenc_jax.lab.config.overrides import COMPUTING, of_computing, replaced
from posenc_jax.lab.files import disk, imports
from posenc_jax.lab.files.json_file import listed, read_object, typed
from posenc_jax.lab.model.kinds import ModelConfig
from posenc_jax.lab.model.pyramid import STAGE
from posenc_jax.lab.runs.sizes import make_task, model_config, problem_of, sized_model
from posenc_jax.protocol.errors import quoted

# Fields that may differ when a run is resumed, because they do not change what is trained: where
# the run is kept, and how it is reported, computed, distributed, saved and evaluated.
FREE_FIELDS = ('workdir', 'name', 'extend', 'mesh', 'cluster', 'eval', 'train.log_every',
    'train.eval_every', 'train.eval_batches',
               'train.save_every', 'train.keep', *COMPUTING)  # fmt: skip
FILE = 'config.json'  # in the run directory
# The entry of that file with the sizes of the model that the task sets. With them the model can be
# built without the data.
SHAPE = 'task_shape'
# Sizes in it that only some tasks set, of points and of tokens.
FURTHER = (
    ('output_size', 'predicts', 'bits'),
    ('output_size', 'pooled', 'channels', 'source_size', 'source_width'),
)
# The entry with digests of the configs that the run had before `--resume_changed` replaced them.
EARLIER = 'resumed_changed'
# Types of the items of the lists in that file; a stage of a pyramid is a list itself.
ITEMS = {
    'imports': str, 'pattern': str, 'source_pattern': str, 'eval.lengths': int,
    'eval.protocols': str, 'eval.depths': float, 'model.lower': STAGE,
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Saved:
    """The content of `config.json`.

    Attributes:
      config: the config of the run.
      shape: the sizes of the model that its task sets, as `sizes.sized_model` takes them; {} in
        files of versions that stored none.
      earlier: digests of the configs that `--resume_changed` has replaced (see
        `checkpoint.Checkpoints`).
    """

    config: ConfigDict
    shape: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    earlier: tuple[str, ...] = ()

    @property
    def model_config(self) -> ModelConfig:
        """The config of the model. Files that store no shape need the data of the task."""
        return (
            sized_model(self.config, **self.shape)
            if self.shape
            else model_config(self.config, make_task(self.config))
        )

    def computed(self, overrides: Mapping[str, Any]) -> 'Saved':
        """The same with those overrides that say how the model is computed (`COMPUTING`).

        Raises:
          SpecError: as `overrides.replaced`.
        """
        return dataclasses.replace(self, config=replaced(self.config, of_computing(overrides)))

    @property
    def bound(self) -> dict[str, Any]:
        """Dotted name -> value, of the fields and sizes that change what is trained."""
        return unfree(fields_of(self.config)) | {
            f'{SHAPE}.{name}': size for name, size in self.shape.items()
        }


def save(config: ConfigDict, path: pathlib.Path) -> None:
    """Writes a config as JSON, with the sizes that its task sets; the file is never incomplete."""
    write(saved_of(config), path)


def write(saved: Saved, path: pathlib.Path) -> None:
    """Writes what `saved_of` returned, as `save` does, and the copies of the files it imports."""
    fields = (
        saved.config.to_dict()
        | {SHAPE: saved.shape}
        | ({EARLIER: saved.earlier} if saved.earlier else {})
    )
    imports.store(saved.config.imports, path.parent)
    disk.write(path, json.dumps(fields, indent=2) + '\n')


def saved_of(config: ConfigDict, earlier: Iterable[str] = ()) -> Saved:
    """A config with the sizes that its task sets.

    Args:
      config: the config of the run.
      earlier: digests of configs that `--resume_changed` has replaced.
    """
    shape = problem_of(make_task(config), config.task).shape(config)
    return Saved(config, shape, tuple(earlier))


def from_json(path: pathlib.Path) -> ConfigDict:
    """Reads the config that `save` wrote. Fields that an older version did not have get their
    defaults.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a config, or a field is unknown to this version or has another
        type; the message names the field.
    """
    return read_saved(path).config


def read_saved(path: pathlib.Path) -> Saved:
    """Reads the config and what `config.json` holds beside its fields. Raises as `from_json`."""
    try:
        found = read_object(path, 'a config')
    except FileNotFoundError as error:
        raise FileNotFoundError(f'{error}: {path.parent} is not the directory of a run') from None
    try:
        shape = _shape(found.pop(SHAPE)) if SHAPE in found else {}
        earlier = typed(found.pop(EARLIER, []), tuple, EARLIER, str)
        config, unknown = defaults.get_config(), []
        fields = _flattened(found, config, '', unknown)
    except ValueError as error:
        raise ValueError(f'{path} is not a config: {error}') from None
    if unknown:
        known = fields_of(config)
        close = lambda name: ''.join(
            f' (did you mean {match!r}?)' for match in difflib.get_close_matches(name, known, 1)
        )
        names = [
            quoted(name) + (close(name) if place < 6 else '')
            for place, name in enumerate(sorted(unknown))
        ]
        raise ValueError(
            f'{path} has fields that this version of posenc_jax does not know: {listed(names)}'
        )
    if not fields:
        raise ValueError(f'{path} is not a config: it holds no field')
    config.update_from_flattened_dict(fields)
    return Saved(config.lock(), shape, earlier)


def _shape(found: Any) -> dict[str, int | str]:
    points = isinstance(found, dict) and 'components' in found
    names, further = ('components' if points else 'vocab_size', 'width'), FURTHER[not points]
    least = lambda name: (
        len(typed(found[name], str, f'{SHAPE}.{name}'))
        if name == 'predicts'
        else typed(found[name], int, f'{SHAPE}.{name}')
    )
    if (
        not isinstance(found, dict)
        or not set(names) <= found.keys() <= {*names, *further}
        or any(least(n) < (n != 'vocab_size' or 'channels' not in found) for n in found)
    ):
        raise ValueError(
            f'{SHAPE} is {quoted(found)}, expected an object with the positive numbers '
            f'{" and ".join(names)}'
        )
    return found


def _flattened(
    found: dict[str, Any], usual: ConfigDict, prefix: str, unknown: list[str]
) -> dict[str, Any]:
    """Dotted name -> value of the fields that were found, with the types of the defaults. Names
    that the defaults lack are added to `unknown`.
    """
    fields = {}
    for key, value in found.items():
        name = prefix + key
        if key not in usual:
            unknown.append(name)
        elif not isinstance(usual[key], ConfigDict):
            fields[name] = typed(value, type(usual[key]), name, ITEMS.get(name))
        elif isinstance(value, dict):
            fields |= _flattened(value, usual[key], f'{name}.', unknown)
        else:
            raise ValueError(f'{name} is {quoted(value)}, expected an object of fields')
    return fields


def differences(old: ConfigDict, new: ConfigDict) -> list[str]:
    """Lines such as 'train.lr: 0.001 -> 0.01', one for each field that changes what is trained and
    has another value in `new`.
    """
    changed = changes(Saved(old).bound, Saved(new).bound)
    return [
        f'{name}: {quoted(before)} -> {quoted(after)}' for name, (before, after) in changed.items()
    ]


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The fields in which two `Saved.bound` differ -> (old value, new value). A missing field
    counts as its default. Free fields, which checkpoints of earlier versions hold, are passed over.
    """
    usual = fields_of(defaults.get_config())
    value = lambda fields, name: fields.get(name, usual.get(name, '(absent)'))
    names = sorted(unfree(old).keys() | unfree(new).keys())
    pairs = {name: (value(old, name), value(new, name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def unfree(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted name -> value, without `FREE_FIELDS`."""
    free = lambda name: any(name == f or name.startswith(f + '.') for f in FREE_FIELDS)
    return {name: value for name, value in fields.items() if not free(name)}
