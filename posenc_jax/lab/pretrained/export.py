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
from posenc_jax.lab.pretrained.load import leaf_of, name_of_variable
from posenc_jax.lab.pretrained.scaling import parameters_of
from posenc_jax.methods.abf import ABF
from posenc_jax.methods.ntk_aware import NTKAware, ntk_aware_base
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import Encoding


def export_pretrained(
    model: Transformer, path: str | pathlib.Path, *, tokenizer: Any = None
) -> pathlib.Path:
    """Writes `config.json` and `model.safetensors` (and `tokenizer.json`), which `transformers` and
    `load_pretrained` can read.

    A decoder with RMSNorm, SwiGLU and `rope()` becomes a Llama, with any base and with plain, `pi`,
    `ntk_aware`, `abf`, `dynamic_ntk`, `yarn`, `llama3_rope`, `longrope` or `p_rope` frequencies. A
    decoder with LayerNorm, biases everywhere, `learned_absolute()` and the tanh form of gelu
    becomes a GPT-2. If the output is not tied to the embedding, the embedding scale is multiplied
    into the table.

    `max_position_embeddings` of a Llama is the extended length, `factor` times the trained one, for
    `pi`, `yarn`, `llama3_rope` and `longrope`. For the other rules it is the trained length:
    `dynamic_ntk` has no limit, and a larger base does not tell how far it extends. If `factor *
    train_len` of `yarn` is not an integer, `transformers` warns that the two lengths do not agree
    with the factor.

    Args:
      model: the model to export.
      path: directory; created if it does not exist.
      tokenizer: a `tokenizers.Tokenizer` that is written too; None for none.

    Raises:
      DiskFullError: the disk has no room.
      PretrainedError: no architecture can express the model; the message names the choice at fault.
    """
    config = _config(model)
    architecture = describe(config, 'the exported model')
    scale = model.cfg.embedding_scale
    tensors: dict[str, np.ndarray] = {}
    for variable_path, variable in jax.tree_util.tree_leaves_with_path(
        nnx.state(model, nnx.Param), is_leaf=lambda x: isinstance(x, nnx.Variable)
    ):
        key, numbers = leaf_of(name_of_variable(variable_path), model.cfg.layers, len(model.blocks))
        leaf, stored = architecture.leaves[key], np.asarray(variable.get_value(), np.float32)
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
    disk.write(path / 'config.json', json.dumps(config, indent=2) + '\n')
    return path


def _encoding(model: Transformer) -> Encoding:
    try:
        return model.encoding(0, model.blocks[0])
    except ValueError as error:
        raise PretrainedError(f'{error}: no exported architecture has such layers') from None


def _config(model: Transformer) -> dict[str, Any]:
    cfg = model.cfg
    if cfg.kind != 'decoder':
        raise PretrainedError(f'only decoders are exported, this model is of kind {cfg.kind!r}')
    if model.blocks[0].mlp.rows_in is not None:
        raise PretrainedError(
            'the model of for_decoding() is not exported; export the model it was made of'
        )
    if len(cfg.specs) > 1:
        raise PretrainedError(
            f'a model with a pattern of encodings is not exported: {" / ".join(cfg.specs)}'
        )
    if cfg.tie and cfg.embedding_scale != 1.0:
        raise PretrainedError(
            f'the tied table is multiplied by {cfg.embedding_scale:.4g} at the input, which no '
            'exported architecture does; train with model.tie=False or model.embedding_scale=1.0'
        )
    shared = dict(vocab_size=cfg.vocab_size, tie_word_embeddings=cfg.tie, torch_dtype='float32')
    if cfg.lora_rank:
        raise PretrainedError(
            f'adapters (model.lora_rank={cfg.lora_rank}) are not exported; export model.merged()'
        )
    for name, usual in (('norm_place', 'before'), ('qk_norm', 'none'), ('output_cap', 0.0)):
        if (found := getattr(cfg, name)) != usual:
            raise PretrainedError(
                f'a model with model.{name}={found!r} is not exported, expected {usual!r}'
            )
    if cfg.embedding_norm:
        raise PretrainedError('a norm behind the embedding (model.embedding_norm) is not exported')
    parts: list[Any] = [
        part for part in parts_of(_encoding(model)) if name_of(part) not in ('causal', 'document')
    ]
    keys = [name_of(part) for part in parts if name_of(part) != 'nope']
    if (
        cfg.mlp == 'swiglu'
        and cfg.norm == 'rmsnorm'
        and cfg.bias == 'none'
        and keys == ['rope']
        and not cfg.parallel
    ):
        return {
            'model_type': 'llama',
            'architectures': ['LlamaForCausalLM'],
            'hidden_size': cfg.width,
            'num_hidden_layers': cfg.layers,
            'num_attention_heads': cfg.heads,
            'num_key_value_heads': cfg.kv_heads,
            'head_dim': cfg.head_dim,
            'intermediate_size': cfg.mlp_width,
            'hidden_act': 'silu',
            'rms_norm_eps': cfg.epsilon,
            **_rope(parts[0], cfg.train_len),
            **shared,
        }
    if (
        cfg.mlp == 'gelu'
        and cfg.norm == 'layernorm'
        and cfg.bias == 'all'
        and keys == ['learned_absolute']
        and not cfg.parallel
    ):
        if not cfg.tie:
            raise PretrainedError(
                'GPT-2 ties its output to the embedding: train with model.tie=True'
            )
        if cfg.kv_heads != cfg.heads or cfg.head_dim * cfg.heads != cfg.width:
            raise PretrainedError(
                f'GPT-2 has no grouped heads: {cfg.heads} heads, {cfg.kv_heads} kv_heads of '
                f'{cfg.head_dim}'
            )
        return {
            'model_type': 'gpt2',
            'architectures': ['GPT2LMHeadModel'],
            'n_embd': cfg.width,
            'n_layer': cfg.layers,
            'n_head': cfg.heads,
            'n_inner': cfg.mlp_width,
            'n_positions': parts[0].max_len,
            'activation_function': 'gelu_new',
            'layer_norm_epsilon': cfg.epsilon,
            **shared,
        }
    raise PretrainedError(
        f'no exported architecture is a model with mlp={cfg.mlp!r}, norm={cfg.norm!r}, '
        f'bias={cfg.bias!r}, parallel={cfg.parallel} and {" | ".join(keys) or "nope"}; Llama is '
        'swiglu, rmsnorm, none, rope(); GPT-2 is gelu, layernorm, all, learned_absolute()'
    )


def _rope(part: Rotary, train_len: int) -> dict[str, Any]:
    """The config fields of a rotary encoding, the inverse of `scaling.rope_spec` and
    `scaling.trained_length`.
    """
    if part.layout != 'half' or part.partial != 1.0:
        raise PretrainedError(
            f"Llama has rope in layout 'half' over whole heads, got {part.layout!r}, "
            f'partial={part.partial}'
        )
    trained = {'max_position_embeddings': train_len}
    freqs: Any = part.freqs
    if freqs is None:
        return {'rope_theta': part.base, **trained}
    if isinstance(freqs, ABF):
        return {'rope_theta': freqs.base, **trained}
    if isinstance(freqs, NTKAware):
        return {'rope_theta': ntk_aware_base(part.rotary_dim, part.base, freqs.factor), **trained}
    scaling = parameters_of(freqs)
    trained = getattr(freqs, 'train_len', train_len)
    lengths = {'max_position_embeddings': round(scaling.get('factor', 1) * trained)}
    if scaling['rope_type'] == 'dynamic':
        # `transformers` reads the trained length of this rule from max_position_embeddings.
        lengths = {'max_position_embeddings': trained}
    if scaling['rope_type'] == 'linear':
        # The linear type of `transformers` has no field for the trained length in its scaling.
        lengths['original_max_position_embeddings'] = train_len
    return {'rope_theta': part.base, 'rope_scaling': scaling, **lengths}
