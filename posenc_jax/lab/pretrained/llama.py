"""Llama, Mistral, Qwen2, Qwen3, Phi-3, SmolLM3 and OLMo 2: RMSNorm, SwiGLU, rotary encoding,
grouped-query attention.
"""

from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.pretrained.choices import (
    heads_of,
    layer_kinds,
    one_per_layer,
    refuse,
    rotary_spec,
    windowed,
)
from posenc_jax.lab.pretrained.layout import Architecture, leaves_of, with_output
from posenc_jax.lab.pretrained.scaling import trained_length
from posenc_jax.lab.pretrained.tensor_names import NAMES

# What `transformers` takes where a config lacks a field, if it is not what others take.
DEFAULTS = {'qwen3': {'head_dim': 128}, 'smollm3': {'rope_theta': 2e6}}


def llama(config, where) -> Architecture:
    """Llama, Mistral, Qwen2 (biases on query, key and value), Qwen3 (norms of every head of query
    and key), Phi-3 (joined projections), SmolLM3 (layers without rotary encoding) and OLMo 2 (norms
    after the branches, and over the whole width of query and key).
    """
    kind = config['model_type']
    config = {**DEFAULTS.get(kind, {}), **config}
    refuse(
        config,
        where,
        hidden_act='silu',
        mlp_bias=False,
        attn_logit_softcapping=None,
        logits_scaling=1.0,
    )
    if kind != 'qwen2':
        refuse(config, where, attention_bias=False)
    pattern = _pattern(config, rotary_spec(config, heads_of(config)[2], where), where)
    own = {
        'qwen2': dict(bias='qkv'),
        'qwen3': dict(qk_norm='head'),
        'olmo2': dict(qk_norm='width', norm_place='after'),
    }
    cfg = gated_config(
        config, pattern, train_len=trained_length(config, where), **own.get(kind, {})
    )
    ignored = 'model.layers.{}.self_attn.rotary_emb.inv_freq'
    return with_output(config, cfg, leaves_of(cfg, NAMES[kind]), ignored, tied=kind == 'smollm3')


def _pattern(config, spec: str, where) -> tuple[str, ...]:
    """The spec of each layer of one period, with its windows, and 'nope()' where SmolLM3 has no
    rotary encoding.
    """
    kind, layers = config['model_type'], config['num_hidden_layers']
    specs, first = [spec] * layers, 0  # the first layer with a window
    if kind in ('qwen2', 'qwen3'):
        first = min(config.get('max_window_layers', 0), layers)
    usual = ['full_attention'] * first + ['sliding_attention'] * (layers - first)
    if kind == 'smollm3':
        turned = config.get('no_rope_layers')
        if turned is None:
            step = config.get('no_rope_layer_interval', 4)
            turned = [int((layer + 1) % step != 0) for layer in range(layers)]
        turned = one_per_layer(turned, 'no_rope_layers', layers, where)
        specs = [spec if turns else 'nope()' for turns in turned]
        usual = ['full_attention' if turns else 'sliding_attention' for turns in turned]
    kinds = layer_kinds(config, layers, where, usual)
    # Llama and OLMo 2 have no sliding windows, so the fields are ignored there.
    optional = kind in ('qwen2', 'qwen3', 'smollm3')
    if kind in ('llama', 'olmo2') or not config.get('use_sliding_window', not optional):
        kinds = ['full_attention'] * layers
    return windowed(config, specs, kinds)


def gated_config(config, pattern: tuple[str, ...], **own) -> TransformerConfig:
    """The config of a model with RMSNorm and a gated feed-forward network.

    Args:
      config: the config of the checkpoint.
      pattern: the spec of each layer of one period.
      **own: what the architecture sets itself.
    """
    heads, kv_heads, head_dim = heads_of(config)
    sizes = dict(heads=heads, kv_heads=kv_heads, head_dim=head_dim)
    usual = dict(mlp='swiglu', norm='rmsnorm', embedding_scale=1.0)
    return TransformerConfig(
        vocab_size=config['vocab_size'],
        layers=config['num_hidden_layers'],
        width=config['hidden_size'],
        encoding=pattern[0],
        pattern=pattern if len(pattern) > 1 else (),
        mlp_width=config['intermediate_size'],
        epsilon=config['rms_norm_eps'],
        **{**sizes, **usual, **own},
    )
