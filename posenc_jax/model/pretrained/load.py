"""Public weights, straight into the sharded model: one tensor of one layer is held at a time."""

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

from posenc_jax.model.pretrained.architectures import describe
from posenc_jax.model.pretrained.fields import PretrainedError, near
from posenc_jax.model.pretrained.layout import Architecture, Leaf
from posenc_jax.model.pretrained.sources import Source, open_source
from posenc_jax.model.pretrained.tokenizer import UnknownTokenizerError, check_tokenizer
from posenc_jax.model.sharding import make_mesh, param_shardings
from posenc_jax.model.transformer import Transformer


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """A public model.

    Attributes:
      model: with the encoding, and the context extension, that the checkpoint declares.
      tokenizer: a `tokenizers.Tokenizer`, or None where the checkpoint has none, or one of a kind
        that is not read.
      config: of the checkpoint, under the names of a Hugging Face `config.json`.
    """

    model: Transformer
    tokenizer: Any
    config: dict[str, Any]


def load_pretrained(
    path: str | pathlib.Path, *, mesh: Mesh | None = None, dtype: str = 'float32', **changes
) -> Pretrained:
    """Reads a public checkpoint. Nothing is ever fetched over the network.

    Args:
      path: a Hugging Face directory (Llama, Mistral, Qwen2, Phi-3, GPT-NeoX, GPT-2, BLOOM, MPT;
        `config.json` and safetensors, in one file or in shards), or a `.gguf` file of llama
        architecture.
      mesh: where the weights go; None is the first device.
      dtype: of activations; weights are kept in float32.
      **changes: further fields of the `TransformerConfig`, e.g. `remat='full'`.

    Raises:
      FileNotFoundError: a file that should be there is not.
      PretrainedError: an unknown architecture or rope type, or a rope parameter that is not read; a
        field of another type, or beyond its bound (docs/pretrained.md); a missing or surplus
        tensor, one of another shape, of integers, or with numbers that are not finite; a damaged
        file; a tokenizer that cannot be read, or, as special tokens, has ids that the model does
        not have. The message names file, tensor or field, found and expected.

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
    except ValueError as error:  # e.g. heads of an odd width, which rotary planes do not divide
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
    # What is computed rather than stored, such as slopes; the compiler leaves the random weights
    # out.
    constants = jax.jit(lambda: nnx.split(Transformer(cfg, rngs=nnx.Rngs(0)), nnx.Param, ...)[2])()
    return Pretrained(nnx.merge(graphdef, params, constants), tokenizer, source.config)


def name_of_variable(path) -> str:
    """A path in a state as 'blocks.0.attention.w_q'."""
    return jax.tree_util.keystr(path, simple=True, separator='.').removesuffix('.value')


def leaf_of(name: str, layers: int, period: int) -> tuple[str, list[int | None]]:
    """The key of a variable in `Architecture.leaves`, and the layers it stacks; [None] for one
    outside the layers.
    """
    in_block = re.fullmatch(r'blocks\.(\d+)\.(.*)', name)
    return (
        (name, [None])
        if in_block is None
        else (in_block[2], list(range(int(in_block[1]), layers, period)))
    )


def _readers(
    source: Source, architecture: Architecture, params: nnx.State, period: int
) -> dict[str, Callable]:
    """For each variable what reads a part of it: index -> float32 array."""
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
        readers[name] = functools.partial(_read, source, leaf.change, stored, stacked)
    return readers


def architecture_of(source: Source) -> Architecture:
    """The architecture of a checkpoint. Its sizes are those of tensors that the files hold: nothing
    larger is ever built.

    Raises:
      PretrainedError: as `describe`; a missing or surplus tensor, or one of another shape.
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


def _find(source: Source, leaf: Leaf, number: int | None, shapes) -> str:
    """The name of the tensor in this checkpoint."""
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
    """A tensor's name in a base model, which is published without the first part of it."""
    return name.split('.', 1)[1]


def _read(source: Source, change, names: list[str], stacked: bool, index) -> np.ndarray:
    """The part `index` of a variable, one stored tensor after the other."""
    one = lambda name: _finite(source, name, change)
    if not stacked:
        return one(names[0])[index]
    return np.stack([one(name)[index[1:]] for name in names[index[0]]])


def _finite(source: Source, name: str, change) -> np.ndarray:
    """A stored tensor in our layout, float32."""
    stored = source.read(name)
    if not jnp.issubdtype(stored.dtype, jnp.floating):
        raise PretrainedError(
            f'{source.file(name)}: the tensor {name!r} is of type {stored.dtype}, expected '
            'floating point'
        )
    with np.errstate(all='ignore'):  # said below
        array = np.asarray(change(stored), np.float32)
    for extreme in (
        array.min(),
        array.max(),
    ):  # NaN is both; no second array of this size, as np.isfinite(array) is
        if not np.isfinite(extreme):
            where = f'{source.file(name)}: the tensor {name!r}'
            raise PretrainedError(f'{where} holds {extreme}, expected finite numbers of 32 bits')
    return array
