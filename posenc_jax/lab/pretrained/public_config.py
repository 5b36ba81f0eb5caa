"""The config of each public architecture for a model of ours, and how the two would differ.

Every architecture has a function that writes the config which comes nearest to the model. What
`describe` reads in it decides whether it is the same model, so each condition stands in one place:
where the config is read.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.lab.pretrained.fields import PretrainedError
from posenc_jax.lab.pretrained.gpt import mpt_slopes
from posenc_jax.lab.pretrained.scaling import ROPE_TYPES, parameters_of
from posenc_jax.methods.abf import ABF
from posenc_jax.methods.alibi import ALiBi
from posenc_jax.methods.ntk_aware import NTKAware, ntk_aware_base
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import Encoding

# Keys of the frequency rules that a config can have: as a rope type, or as the base that they give.
WRITTEN_RULES = sorted({t.rule for t in ROPE_TYPES.values() if t.rule} | {'abf', 'ntk_aware'})


@dataclasses.dataclass(frozen=True)
class Public:
    """A model as the writers of configs see it.

    Attributes:
      cfg: of the model.
      layers: the parts of the encoding of each layer, by their keys.
    """

    cfg: TransformerConfig
    layers: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, model: Transformer) -> 'Public':
        """Raises ValueError where a layer has a mixer in the place of attention."""
        period = [parts_by_key(model.encoding(i, block)) for i, block in enumerate(model.blocks)]
        return cls(model.cfg, tuple(period * (model.cfg.layers // len(period))))

    def first(self, key: str, where: Callable[[Mapping], bool] = lambda parts: True) -> Any:
        """The first part of a kind, of the layers with a property; None if there is none."""
        return next((p[key] for p in self.layers if key in p and where(p)), None)

    @property
    def kinds(self) -> dict[str, Any]:
        """The fields of sliding windows."""
        window = self.first('window')
        if window is None:
            return {}
        names = ['sliding_attention' if 'window' in p else 'full_attention' for p in self.layers]
        return {'sliding_window': window.size, 'layer_types': names, 'use_sliding_window': True}


def parts_by_key(encoding: Encoding) -> dict[str, Any]:
    return {name_of(part): part for part in parts_of(encoding)}


def rope_fields(part: Rotary | None, train_len: int) -> dict[str, Any]:
    """The config fields of a rotary encoding, the inverse of `scaling.rope_spec` and
    `scaling.trained_length`; those of the default one where there is none.

    Raises:
      PretrainedError: `transformers` has no such layout or no such frequencies.
    """
    trained = {'max_position_embeddings': train_len}
    if part is None:
        return {'rope_theta': 10000.0, **trained}
    if part.layout != 'half':
        raise PretrainedError(f"transformers has rope in layout 'half' alone, got {part.layout!r}")
    partial = {} if part.partial == 1.0 else {'partial_rotary_factor': part.partial}
    freqs: Any = part.freqs
    if freqs is None:
        return {'rope_theta': part.base, **trained, **partial}
    if isinstance(freqs, ABF):
        return {'rope_theta': freqs.base, **trained, **partial}
    if isinstance(freqs, NTKAware):
        base = ntk_aware_base(part.rotary_dim, part.base, freqs.factor)
        return {'rope_theta': base, **trained, **partial}
    scaling = parameters_of(freqs)
    trained = getattr(freqs, 'train_len', train_len)
    lengths = {'max_position_embeddings': round(scaling.get('factor', 1) * trained)}
    if scaling['rope_type'] == 'dynamic':
        # `transformers` reads the trained length of this rule from max_position_embeddings.
        lengths = {'max_position_embeddings': trained}
    if scaling['rope_type'] == 'linear':
        # The linear type of `transformers` has no field for the trained length in its scaling.
        lengths['original_max_position_embeddings'] = train_len
    return {'rope_theta': part.base, 'rope_scaling': scaling, **lengths, **partial}


def _gated(kind: str, name: str, **own: Any):
    """What writes the config of a model with RMSNorm and a gated feed-forward network."""

    def write(model: Public) -> dict[str, Any]:
        cfg = model.cfg
        return {
            'model_type': kind,
            'architectures': [name],
            'vocab_size': cfg.vocab_size,
            'hidden_size': cfg.width,
            'num_hidden_layers': cfg.layers,
            'num_attention_heads': cfg.heads,
            'num_key_value_heads': cfg.kv_heads,
            'head_dim': cfg.head_dim,
            'intermediate_size': cfg.mlp_width,
            'hidden_act': 'silu',
            'rms_norm_eps': cfg.epsilon,
            'tie_word_embeddings': cfg.tie,
            'pad_token_id': None,
            **rope_fields(model.first('rope'), cfg.train_len),
            **(model.kinds if kind != 'llama' else {}),
            **own,
        }

    return write


def _mistral(model: Public) -> dict[str, Any]:
    # Every layer has the window: the architecture has no kinds of layers.
    window = model.first('window')
    config = _gated('mistral', 'MistralForCausalLM')(model)
    config.pop('layer_types', None)
    return {**config, 'sliding_window': window and window.size}


def _qwen(kind: str, name: str):
    def write(model: Public) -> dict[str, Any]:
        usual = {'use_sliding_window': False, 'max_window_layers': model.cfg.layers}
        return {**usual, **_gated(kind, name)(model)}

    return write


def _smollm3(model: Public) -> dict[str, Any]:
    turned = [int('rope' in parts) for parts in model.layers]
    usual = {'use_sliding_window': False, 'no_rope_layers': turned}
    return {**usual, **_gated('smollm3', 'SmolLM3ForCausalLM')(model)}


def _phi3(model: Public) -> dict[str, Any]:
    config = _gated('phi3', 'Phi3ForCausalLM', original_max_position_embeddings=model.cfg.train_len)
    found = config(model)
    if (scaling := found.get('rope_scaling')) and scaling['rope_type'] != 'longrope':
        raise PretrainedError(f'Phi-3 has longrope alone, got rope type {scaling["rope_type"]!r}')
    return {**found, 'sliding_window': (w := model.first('window')) and w.size}


def _gemma(kind: str, name: str):
    def write(model: Public) -> dict[str, Any]:
        cfg, cap = model.cfg, model.first('soft_cap')
        config = {
            **_gated(kind, name, hidden_activation='gelu_pytorch_tanh')(model),
            'query_pre_attn_scalar': cfg.head_dim,
            'final_logit_softcapping': cfg.output_cap or None,
            'attn_logit_softcapping': None if cap is None else cap.limit,
            'layer_types': ['full_attention'] * cfg.layers,
            **model.kinds,
        }
        config.pop('hidden_act')
        if kind == 'gemma3_text':
            near = model.first('rope', lambda parts: 'window' in parts)
            far = model.first('rope', lambda parts: 'window' not in parts)
            if near is not None and near.freqs is not None:
                raise PretrainedError('Gemma 3 has plain rope in layers with a window')
            config |= rope_fields(far or near, cfg.train_len)
            config['rope_local_base_freq'] = (near or far).base if near or far else 1e4
        return config

    return write


def _gpt_neox(model: Public) -> dict[str, Any]:
    cfg, rope = model.cfg, rope_fields(model.first('rope'), model.cfg.train_len)
    return {
        'model_type': 'gpt_neox',
        'architectures': ['GPTNeoXForCausalLM'],
        'vocab_size': cfg.vocab_size,
        'hidden_size': cfg.width,
        'num_hidden_layers': cfg.layers,
        'num_attention_heads': cfg.heads,
        'intermediate_size': cfg.mlp_width,
        'hidden_act': _PUBLIC_ACTIVATIONS.get(cfg.mlp, 'gelu'),
        'layer_norm_eps': cfg.epsilon,
        'use_parallel_residual': cfg.parallel,
        'tie_word_embeddings': cfg.tie,
        'rotary_pct': rope.pop('partial_rotary_factor', 1.0),
        'rotary_emb_base': rope['rope_theta'],
        **rope,
    }


_PUBLIC_ACTIVATIONS = {'gelu_erf': 'gelu', 'gelu': 'gelu_new'}


def _gpt2(model: Public) -> dict[str, Any]:
    cfg, table = model.cfg, model.first('learned_absolute')
    return {
        'model_type': 'gpt2',
        'architectures': ['GPT2LMHeadModel'],
        'vocab_size': cfg.vocab_size,
        'n_embd': cfg.width,
        'n_layer': cfg.layers,
        'n_head': cfg.heads,
        'n_inner': cfg.mlp_width,
        'n_positions': table.max_len if table is not None else cfg.train_len,
        'activation_function': _PUBLIC_ACTIVATIONS.get(cfg.mlp, 'gelu_new'),
        'layer_norm_epsilon': cfg.epsilon,
        'tie_word_embeddings': cfg.tie,
    }


def _bloom(model: Public) -> dict[str, Any]:
    cfg = model.cfg
    return {
        'model_type': 'bloom',
        'architectures': ['BloomForCausalLM'],
        'vocab_size': cfg.vocab_size,
        'hidden_size': cfg.width,
        'n_layer': cfg.layers,
        'n_head': cfg.heads,
        'seq_length': cfg.train_len,
        'layer_norm_epsilon': cfg.epsilon,
        'tie_word_embeddings': cfg.tie,
        'pad_token_id': None,
    }


def _mpt(model: Public) -> dict[str, Any]:
    cfg, alibi = model.cfg, model.first('alibi')
    largest = 8
    if isinstance(alibi, ALiBi) and not alibi.learns:
        # The smallest slope of a power of two of heads is 2^-largest.
        steepest = np.log2(np.asarray(alibi.slopes[...], np.float64)).min()
        largest = round(float(steepest / np.log2(min(mpt_slopes(cfg.heads, 1.0)))))
    return {
        'model_type': 'mpt',
        'architectures': ['MptForCausalLM'],
        'vocab_size': cfg.vocab_size,
        'd_model': cfg.width,
        'n_layers': cfg.layers,
        'n_heads': cfg.heads,
        'max_seq_len': cfg.train_len,
        'expansion_ratio': 4,
        'no_bias': True,
        'layer_norm_epsilon': cfg.epsilon,
        'attn_config': {'alibi': True, 'alibi_bias_max': largest},
        'tie_word_embeddings': cfg.tie,
    }


# The first one that is the same model is taken.
WRITERS: Mapping[str, Callable[[Public], dict[str, Any]]] = {
    'llama': _gated('llama', 'LlamaForCausalLM'),
    'mistral': _mistral,
    'qwen2': _qwen('qwen2', 'Qwen2ForCausalLM'),
    'qwen3': _qwen('qwen3', 'Qwen3ForCausalLM'),
    'olmo2': _gated('olmo2', 'Olmo2ForCausalLM'),
    'smollm3': _smollm3,
    'phi3': _phi3,
    'gemma2': _gemma('gemma2', 'Gemma2ForCausalLM'),
    'gemma3_text': _gemma('gemma3_text', 'Gemma3ForCausalLM'),
    'gpt_neox': _gpt_neox,
    'gpt2': _gpt2,
    'bloom': _bloom,
    'mpt': _mpt,
}
