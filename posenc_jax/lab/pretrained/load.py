"""Loads public weights into a sharded model, one variable at a time."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.pretrained.architectures import describe
from posenc_jax.lab.pretrained.fields import PretrainedError, near
from posenc_jax.lab.pretrained.layout import Architecture, Leaf
from posenc_jax.lab.pretrained.sources import StoredCheckpoint, open_source
from posenc_jax.lab.pretrained.tokenizer import UnknownTokenizerError, check_tokenizer
from posenc_jax.layer.sharding import make_mesh, param_shardings


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A public model.

    Attributes:
      model: the model, with the encoding and the context extension that the checkpoint declares.
      tokenizer: a `tokenizers.Tokenizer`; None if the checkpoint has no tokenizer or an unknown
        kind of tokenizer.
      config: the config of the checkpoint, under the names of a Hugging Face `config.json`.
    """

    model: Transformer
    tokenizer: Any
    config: dict[str, Any]


def load_pretrained(
    path: str | pathlib.Path, *, mesh: Mesh | None = None, dtype: str = 'float32', **changes
) -> Pretrained:
    """Reads a public checkpoint from disk. Nothing is downloaded.

    Args:
      path: a Hugging Face directory of an architecture in docs/pretrained.md with `config.json` and
        safetensors in one file or in shards, or a `.gguf` file.
      mesh: devices for the weights; None is the first device.
      dtype: dtype of activations; weights are float32.
      **changes: other fields of the `TransformerConfig`, e.g. `remat='full'`.

    Raises:
      FileNotFoundError: a file is missing.
      PretrainedError: an unknown architecture or rope type; a rope parameter that is not supported;
        a field of a wrong type or out of bounds (docs/pretrained.md); a tensor that is missing or
        surplus, has a wrong shape, or holds integers or numbers that are not finite; a damaged
        file; a tokenizer that cannot be read; a tokenizer or special token with an id outside the
        vocabulary of the model. The message names the file and the tensor or field, what was found
        and what was expected.

    Example:
      found = load_pretrained('SmolLM2-135M-Instruct.Q4_1.gguf')
      logits = found.model(jnp.asarray([found.tokenizer.encode('The capital of France is').ids]))
    """
    source = open_source(path)
    architecture = architecture_of(source)
    cfg = dataclasses.replace(architecture.cfg, dtype=dtype, **changes)
    try:
        tokenizer = source.tokenizer()
    except UnknownTokenizerError:
        tokenizer = None
    if tokenizer is not None:
        check_tokenizer(tokenizer, cfg.vocab_size, source.path)
    mesh = make_mesh(data=1, devices=jax.local_devices()[:1]) if mesh is None else mesh
    try:
        abstract = nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0)))
    except ValueError as error:  # e.g. an odd head width with a rotary encoding
        raise PretrainedError(f'{source.path}: {error}') from error
    graphdef, params, _ = nnx.split(abstract, nnx.Param, ...)
    readers = _readers(source, architecture, params, len(abstract.blocks))
    shardings = param_shardings(params, mesh)

    def filled(path, variable, sharding):
        leaf = variable.get_value()
        read = readers[name_of_variable(path)]
        return variable.replace(
            jax.make_array_from_callback(leaf.shape, sharding, lambda index: read(index))
        )

    is_variable = lambda x: isinstance(x, nnx.Variable)
    params = jax.tree_util.tree_map_with_path(filled, params, shardings, is_leaf=is_variable)
    # Constants that are computed and not stored, such as slopes. The compiler removes the random
    # weights from this function.
    constants = jax.jit(lambda: nnx.split(Transformer(cfg, rngs=nnx.Rngs(0)), nnx.Param, ...)[2])()
    return Pretrained(nnx.merge(graphdef, params, constants), tokenizer, source.config)


def name_of_variable(path) -> str:
    """The name of a variable from its path in the state, e.g. 'blocks.0.attention.w_q'."""
    return jax.tree_util.keystr(path, simple=True, separator='.').removesuffix('.value')


def leaf_of(name: str, layers: int, period: int) -> tuple[str, list[int | None]]:
    """The key of a variable in `Architecture.leaves`, and the numbers of the layers whose values it
    stacks; [None] for a variable outside the layers.
    """
    in_block = re.fullmatch(r'blocks\.(\d+)\.(.*)', name)
    return (
        (name, [None])
        if in_block is None
        else (in_block[2], list(range(int(in_block[1]), layers, period)))
    )


def _readers(
    source: StoredCheckpoint, architecture: Architecture, params: nnx.State, period: int
) -> dict[str, Callable]:
    """For each variable a function that reads a part of it: index -> float32 array."""
    shapes, readers = source.shapes(), {}
    for path, variable in jax.tree_util.tree_leaves_with_path(
        params, is_leaf=lambda x: isinstance(x, nnx.Variable)
    ):
        name, shape = name_of_variable(path), variable.get_value().shape
        key, numbers = leaf_of(name, architecture.cfg.layers, period)
        if key not in architecture.leaves:
            raise PretrainedError(
                f'{source.path}: nothing in the checkpoint says what {name} {shape} is'
            )
        leaf = architecture.leaves[key]
        stored = [_find(source, leaf, number, shapes) for number in numbers]
        stacked = numbers != [None]
        made = leaf.change(np.broadcast_to(np.zeros((), np.int8), leaf.shape)).shape
        assert made == (shape[1:] if stacked else shape), (name, made, shape)
        readers[name] = functools.partial(_read, source, leaf, stored, stacked)
    return readers


def architecture_of(source: StoredCheckpoint) -> Architecture:
    """The architecture of a checkpoint, after a check that the files hold exactly its tensors. So
    no model is built that is larger than the files.

    Raises:
      PretrainedError: the errors of `describe`; a missing or surplus tensor, or one of a wrong
        shape.
    """
    architecture, shapes = describe(source.config, source.described_in), source.shapes()
    layers, used = architecture.cfg.layers, set()
    for leaf in architecture.leaves.values():
        used.update(
            _find(source, leaf, number, shapes)
            for number in (range(layers) if '{}' in leaf.name else (None,))
        )
    ignored = [
        name
        for full in architecture.ignored
        for name in ((full, _of_base(full)) if '{}' in full else (full,))
    ]
    ignored = [re.compile(re.escape(name).replace(r'\{\}', r'\d+')) for name in ignored]
    for name in shapes:
        if name not in used and not any(pattern.fullmatch(name) for pattern in ignored):
            raise PretrainedError(
                f'{source.file(name)} has a tensor {name[:200]!r} {shapes[name]} that a '
                f'{source.config["model_type"]} model of '
                f'{layers} layers does not '
                f'have{near(name, (leaf.name for leaf in architecture.leaves.values()))}'
            )
    return architecture


def _find(source: StoredCheckpoint, leaf: Leaf, number: int | None, shapes) -> str:
    """The name of a leaf's tensor in this checkpoint, after a check of its shape."""
    full = leaf.name.format(number)
    name = full if full in shapes else _of_base(full)
    if name not in shapes:
        raise PretrainedError(
            f'{source.path} lacks the tensor {full!r} {leaf.shape}{near(full, shapes)}'
        )
    if shapes[name] != leaf.shape:
        raise PretrainedError(
            f'{source.file(name)}: the tensor {name!r} has shape {shapes[name]}, expected '
            f'{leaf.shape}'
        )
    return name


def _of_base(name: str) -> str:
    """A tensor's name in a published base model, which lacks the first part of the full name."""
    return name.split('.', 1)[1]


def _read(
    source: StoredCheckpoint, leaf: Leaf, names: list[str], stacked: bool, index
) -> np.ndarray:
    """The part `index` of a variable; its stored tensors are read one after the other."""
    one = lambda name: _finite(source, name, leaf)
    if not stacked:
        return one(names[0])[index]
    return np.stack([one(name)[index[1:]] for name in names[index[0]]])


def _finite(source: StoredCheckpoint, name: str, leaf: Leaf) -> np.ndarray:
    """A stored tensor in our layout, in float32, after a check that it is finite."""
    stored = source.read(name)
    if not jnp.issubdtype(stored.dtype, jnp.floating):
        raise PretrainedError(
            f'{source.file(name)}: the tensor {name!r} is of type {stored.dtype}, expected '
            'floating point'
        )
    with np.errstate(all='ignore'):  # overflow is an error below
        array = np.asarray(leaf.change(stored), np.float32)
        if (leaf.plus, leaf.factor) != (0.0, 1.0):
            array = np.float32(leaf.factor) * (np.float32(leaf.plus) + array)
    # Minimum and maximum are NaN if any number is. np.isfinite(array) would need a second array.
    for extreme in (array.min(), array.max()):
        if not np.isfinite(extreme):
            where = f'{source.file(name)}: the tensor {name!r}'
            raise PretrainedError(f'{where} holds {extreme}, expected finite numbers of 32 bits')
    return array
