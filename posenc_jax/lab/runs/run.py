"""A run as its config resolves it, once: its task, its model as shapes and its directory. All
errors are raised before any device is used.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.extend.core import jaxpr_as_fun
from jax.sharding import Mesh
from ml_collections import ConfigDict

from posenc_jax.attention.kernels import sizes as kernel_sizes
from posenc_jax.lab.config import field_settings, settings
from posenc_jax.lab.config.fields import check_fields, check_numbers
from posenc_jax.lab.files import checkpoint_files, imports, paths
from posenc_jax.lab.model.config import KINDS
from posenc_jax.lab.model.field import FieldConfig
from posenc_jax.lab.model.kinds import Model, build_model
from posenc_jax.lab.runs import restore, stored, tuned
from posenc_jax.lab.runs.problem import Problem
from posenc_jax.lab.runs.sizes import make_task, problem_of, sized_model, task_call
from posenc_jax.lab.runs.state import Params, take_apart
from posenc_jax.language import spec as spec_language
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.protocol.calls import Node
from posenc_jax.protocol.checks import about
from posenc_jax.protocol.composite import parts_of
from posenc_jax.protocol.errors import SpecError, check_choice, quoted

MAX_NAME = 100  # characters of a name that `run_name` composes
LONGEST_NAME = 255  # bytes of a folder name


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """A run as its config resolves it. What is derived from the fields is computed once, when it is
    first asked for.

    Attributes:
      directory: the run directory, or the path of a public checkpoint.
      config: the config, with derived fields filled in.
      task: the task, a `Task`, which makes the batches.
      cfg: the config of the model, a `ModelConfig`. Which kinds task and model have is known to
        `problem`.
      weights: (run, mesh) -> the trained model and its step; None places it on one device.
      asks_for_mesh: whether the mesh of the config must be the one that is used.
    """

    directory: pathlib.Path
    config: ConfigDict
    task: Any
    cfg: Any
    weights: Callable[['Run', Mesh | None], tuple[Model, int]] = restore.weights
    asks_for_mesh: bool = True

    @classmethod
    def of(cls, config: ConfigDict, directory: pathlib.Path = pathlib.Path(), **more) -> 'Run':
        """The run of a config whose fields are known to be right.

        Args:
          config: the config.
          directory: the run directory.
          **more: other fields.

        Raises:
          ValueError: as `sizes.make_task` and `sizes.model_config`.
        """
        task = more.pop('task', None) or make_task(config)
        shape = problem_of(task, config.task).shape(config)
        return cls(directory, config, task, sized_model(config, **shape), **more)

    @functools.cached_property
    def problem(self) -> Problem:
        """What the task asks of the model."""
        return problem_of(self.task, self.config.task)

    @property
    def length(self) -> int | tuple[int, int]:
        """The length, or the range (lowest, highest) of lengths, that training draws from."""
        return self.problem.length(self.config)

    @functools.cached_property
    def _built(self) -> tuple[nnx.GraphDef, Any, Callable]:
        """The structure of the model, its parameters and other variables as shapes, and a function
        that draws them. The model is built here and nowhere else.
        """
        structures = []

        def draw():
            key = jax.random.key(self.config.seed)
            structure, *variables = take_apart(build_model(self.cfg, nnx.Rngs(key)))
            structures.append(structure)
            return tuple(variables)

        program, shapes = jax.make_jaxpr(draw, return_shape=True)()
        whole = jax.tree.structure(shapes)
        return structures[0], shapes, lambda: whole.unflatten(jaxpr_as_fun(program)())

    @functools.cached_property
    def model(self) -> Any:
        """The model as shapes, without the context extension of an evaluation."""
        structure, shapes, _ = self._built
        return nnx.merge(structure, *shapes)

    def draw(self) -> tuple[nnx.State, nnx.State]:
        """The parameters with which training starts, and the other variables of the model; within a
        compiled function.
        """
        return self._built[2]()

    @functools.cached_property
    def extended_model(self) -> Any:
        """`model` with the context extension `config.extend`, as shapes.

        Raises:
          SpecError: an extension that is wrong, or finds nothing to extend.
        """
        if not (spec := self.config.extend):
            return self.model
        graphdef, state = nnx.split(self.model)
        return nnx.eval_shape(lambda state: nnx.merge(graphdef, state).extend(spec), state)

    @functools.cached_property
    def tuned(self) -> Params:
        """Which parameters `train.tune` trains, as a tree of booleans.

        Raises:
          ValueError: as `runs.tuned.trained`.
        """
        return tuned.trained(self.model, self.config.train.tune)

    @functools.cached_property
    def mesh(self) -> Mesh:
        """The mesh of the config, if it has as many devices as there are. Otherwise, unless the
        config asks for it, all devices share the rows; the results are the same on every mesh.

        Raises:
          ValueError: the config asks for a mesh that the devices do not give.
        """
        sizes = {name: size for name, size in self.config.mesh.items() if name != 'cpu_devices'}
        try:
            return make_mesh(**sizes)
        except ValueError:
            if self.asks_for_mesh:
                raise
            return make_mesh()

    def load(self, mesh: Mesh | None = None) -> tuple[Model, int]:
        """The trained model without its context extension, placed on a mesh, and its step; None
        places it on one device.
        """
        return self.weights(self, mesh)

    def extended(self, model: Any) -> Any:
        """`model` with the context extension `config.extend`, if any. Where a part of it says that
        it is `unordered`, its method `fitted` orders all parts like it on text of the validation
        split.
        """
        if not self.config.extend:
            return model
        model = model.extend(self.config.extend)
        for layer_type, block in model.layers():
            if block.own_mixer is None:
                parts: tuple[Any, ...] = parts_of(model.encoding(layer_type, block))
                if unordered := [part for part in parts if getattr(part, 'unordered', False)]:
                    return unordered[0].fitted(model, self.problem.prompt(self))
        return model

    def rows(self, width: int) -> int:
        """The number of rows to read at once: as many tokens as `eval.batch` rows of the trained
        length have, at most `eval.batch` rows, and at least one.

        Args:
          width: tokens per row; pixels or nodes, where the task has images or graphs.
        """
        batch, trained = self.config.eval.batch, self.cfg.train_len
        if self.task.channels:  # their length is a side or a number of copies, not a width
            try:
                trained = self.task.width(self.config.train.length)
            except ValueError:
                # The evaluation has another task, without images of the trained side. The trained
                # length in tokens serves as well: the number of rows changes no result.
                pass
        return max(1, min(batch, batch * trained // width))

    def check_evaluation(self) -> None:
        """Checks that the run can be evaluated as its config says.

        Raises:
          ValueError: it cannot, see `Problem.check_evaluation`; the platform has no kernels, and
            the config asks for them.
        """
        self.problem.check_evaluation(self)
        if self.config.model.implementation in kernel_sizes.KERNELS:
            kernel_sizes.target()  # refuses a platform without kernels before weights are read

    def saved(self, earlier: tuple[str, ...] = ()) -> stored.Saved:
        """The content of `config.json`; `earlier` as for `stored.saved_of`."""
        return stored.Saved(self.config, self.problem.shape(self.config), earlier)


def validate(config: ConfigDict) -> ConfigDict:
    """The config of `resolve(config)`. Raises the same errors."""
    return resolve(config).config


def resolve(config: ConfigDict) -> Run:
    """Resolves and checks the config of a training run without using a device. The config of the
    run is a locked copy.

    Specs are parsed, the data set is looked up, numbers are checked, and the model is built and
    called on shapes. Errors of the evaluation at the end of training are raised now.

    Raises:
      ValueError: a field is wrong; the message says what was expected and names the nearest valid
        choice. For strings it is a `SpecError`.
      FileNotFoundError: the text does not exist.
    """
    check_fields(config)
    config = imported(config)
    check_numbers(config)
    check_choice('model.kind', config.model.kind, (*KINDS, FieldConfig.kind))
    call = task_call(config)
    field_settings.check_applies(config, call)
    if config.model.kind == 'encoder_decoder':  # the config of any other model refuses these fields
        _check_source_specs(config)
    if config.extend and not config.eval.at_end:
        spec_language.parse(config.extend, ('extension', 'frequencies'))
    run = Run.of(config, task=make_task(config, call))
    rows = f'train.batch={config.train.batch} rows of'
    settings.check_memory(rows, config.train.batch, run.cfg.train_len)
    config.name = config.name or run_name(config, call)
    folder = config.name == os.path.basename(config.name) and config.name not in ('.', '..')
    if not folder or len(config.name.encode()) > LONGEST_NAME:
        raise ValueError(
            f'name must be a folder within workdir, of at most {LONGEST_NAME} bytes, got '
            f'{quoted(config.name)}'
        )
    directory = paths.path(config.workdir) / config.name
    checkpoint_files.check_place(directory)
    run = dataclasses.replace(run, directory=directory, config=config.lock())
    run.problem.check_training(run)
    if config.eval.at_end:
        try:
            run.problem.check_evaluation(run)
        except ValueError as error:
            raise ValueError(
                f'the evaluation at the end of training would fail: {error}. Change the fields of '
                'eval, e.g. --config.eval.lengths=..., or train without it: '
                '--config.eval.at_end=False'
            ) from error
    return run


def imported(config: ConfigDict) -> ConfigDict:
    """A copy of a config with the names under which its modules are stored; they are imported.

    Raises:
      ValueError, FileNotFoundError: as `lab.files.imports.load`.
    """
    config = ConfigDict(config.to_dict(), convert_dict=True)
    config.imports = imports.load(config.imports)
    return config


def _check_source_specs(config: ConfigDict) -> None:
    """Checks the spec strings of cross-attention and of the source. Raises SpecError."""
    specs = {name: (config[name],) for name in ('cross', 'source_encoding')}
    for name, own in {**specs, 'source_pattern': config.source_pattern}.items():
        for spec in filter(None, own):
            with about(name):
                mixers = [n.entry.key for n in parse_layer(spec).nodes if n.entry.kind == 'mixer']
                if mixers:
                    raise SpecError(
                        f'{mixers[0]} is a mixer; cross-attention and the layers that read a '
                        "source are attention with encodings, e.g. 'rope()'"
                    )


def run_name(config: ConfigDict, call: Node | None = None) -> str:
    """A folder name made of the task (with its data set), the encodings and the seed, e.g.
    'language-pydoc_topics-rope-s0'. `call` is as for `make_task`.
    """
    call = task_call(config) if call is None else call
    reads = 'dataset' in call.entry.parameters and 'dataset' not in call.arguments
    dataset = [config.data.dataset] if reads else []
    kind = config.model.kind
    if field_settings.is_field(config):
        specs = [config.features, config.field]
    else:
        specs = [config.features, *(config.pattern or (config.encoding,))]
        specs.append('' if kind == 'decoder' else kind)
    if kind == 'encoder_decoder':
        specs += config.source_pattern or (config.source_encoding,)
        specs += [config.cross] if config.cross != 'nope()' else []
    text = [config.task, *dataset, *filter(None, specs), f's{config.seed}']
    words = '-'.join(re.sub(r'[^\w.]+', '-', part).strip('-') for part in text)
    return words[-MAX_NAME:].lstrip('-')
