"""Writes a model as a Hugging Face directory, if an architecture of `transformers` expresses it."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from flax import nnx

from posenc_jax.base import extras
from posenc_jax.lab.files import disk
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.pretrained.architectures import describe
from posenc_jax.lab.pretrained.fields import PretrainedError
from posenc_jax.lab.pretrained.layout import Architecture
from posenc_jax.lab.pretrained.load import leaf_of, name_of_variable
from posenc_jax.lab.pretrained.public_config import WRITERS, Public
from posenc_jax.lab.pretrained.same_model import differences
from posenc_jax.protocol.errors import nearest


def export_pretrained(
    model: Transformer, path: str | pathlib.Path, *, tokenizer: Any = None, architecture: str = ''
) -> pathlib.Path:
    """Writes `config.json` and `model.safetensors` (and `tokenizer.json`), which `transformers` and
    `load_pretrained` can read.

    Every architecture that `load_pretrained` reads can be written: Llama, Mistral, Qwen2, Qwen3,
    OLMo 2, SmolLM3, Phi-3, Gemma 2 and 3, GPT-NeoX, GPT-2, BLOOM and MPT. The first one that fits
    the model is taken, so a decoder with RMSNorm, SwiGLU and `rope()` becomes a Llama, with any
    base and with plain, `pi`, `ntk_aware`, `abf`, `dynamic_ntk`, `yarn`, `llama3_rope`, `longrope`
    or `p_rope` frequencies. If the output is not tied to the embedding, the embedding scale is
    multiplied into the table.

    `max_position_embeddings` of a model with `rope()` is the extended length, `factor` times the
    trained one, for `pi`, `yarn`, `llama3_rope` and `longrope`. For the other rules it is the
    trained length: `dynamic_ntk` has no limit, and a larger base does not tell how far it extends.
    If `factor * train_len` of `yarn` is not an integer, `transformers` warns that the two lengths
    do not agree with the factor.

    Args:
      model: the model to export.
      path: directory; created if it does not exist.
      tokenizer: a `tokenizers.Tokenizer` that is written too; None for none.
      architecture: the `model_type` to write, such as 'phi3'; '' for the first that fits the model.

    Raises:
      DiskFullError: the disk has no room.
      PretrainedError: no architecture fits the model; the message names the nearest one, and in
        what the model differs from it.
    """
    config, read = _config(model, architecture)
    scale = model.cfg.embedding_scale / read.cfg.embedding_scale
    tensors: dict[str, np.ndarray] = {}
    for variable_path, variable in jax.tree_util.tree_leaves_with_path(
        nnx.state(model, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable)
    ):
        key, numbers = leaf_of(name_of_variable(variable_path), model.cfg.layers, len(model.blocks))
        leaf, ours = read.leaves[key], np.asarray(variable.get_value(), np.float32)
        stored = ours / np.float32(leaf.factor) - np.float32(leaf.plus)
        if key == 'embedding':
            stored = stored * np.float32(scale)
        places = leaf.change(np.arange(np.prod(leaf.shape)).reshape(leaf.shape))
        for number, layer in zip(numbers, [stored] if numbers == [None] else stored):
            tensors.setdefault(leaf.name.format(number), np.empty(leaf.shape, np.float32)).flat[
                places
            ] = layer
    path = pathlib.Path(path)
    with extras.explained():
        from safetensors.numpy import save_file

    with disk.whole(path / 'model.safetensors', sum(a.nbytes for a in tensors.values())) as partial:
        save_file(tensors, partial, metadata={'format': 'pt'})
    if tokenizer is not None:
        disk.write(path / 'tokenizer.json', tokenizer.to_str(pretty=True))
    config = {**config, 'torch_dtype': 'float32'}
    disk.write(path / 'config.json', json.dumps(config, indent=2) + '\n')
    return path


def _config(model: Transformer, architecture: str) -> tuple[dict[str, Any], Architecture]:
    """The config of the first architecture that is this model, and what it says of the tensors."""
    if model.blocks[0].mlp.rows_in is not None:
        raise PretrainedError(
            'the model of for_decoding() is not exported; export the model it was made of'
        )
    if model.cfg.lora_rank:
        raise PretrainedError(
            f'adapters (model.lora_rank={model.cfg.lora_rank}) are not exported; export '
            'model.merged()'
        )
    if architecture and architecture not in WRITERS:
        raise PretrainedError(f'architecture={architecture!r}; {nearest(architecture, WRITERS)}')
    try:
        found = Public.of(model)
    except ValueError as error:
        raise PretrainedError(f'{error}: no exported architecture has such layers') from None
    refused: dict[str, list[str]] = {}
    for kind in [architecture] if architecture else WRITERS:
        try:
            config = WRITERS[kind](found)
            read = describe(config, f'the config of a {kind} model')
        except PretrainedError as error:
            refused[kind] = [str(error)]
            continue
        refused[kind] = differences(found, read.cfg)
        if not refused[kind]:
            return config, read
    kind = min(refused, key=lambda kind: len(refused[kind]))
    which = (
        'the model is not a' if architecture else 'no architecture fits the model; the nearest is'
    )
    raise PretrainedError(f'{which} {kind!r}: {"; ".join(refused[kind])}')
