"""Gemma 2 and the text model of Gemma 3: norms before and after every branch, a gate by gelu, and
layers with and without a sliding window.
"""

import dataclasses

from posenc_jax.lab.pretrained.choices import heads_of, layer_kinds, refuse, rotary_spec, windowed
from posenc_jax.lab.pretrained.layout import Architecture, leaves_of, with_output
from posenc_jax.lab.pretrained.llama import gated_config
from posenc_jax.lab.pretrained.scaling import rope_of_kind, trained_length
from posenc_jax.lab.pretrained.tensor_names import NAMES

# What `transformers` takes where a config lacks a field.
_DEFAULTS = {
    'gemma2': {
        'head_dim': 256,
        'sliding_window': 4096,
        'sliding_window_pattern': 2,
        'attn_logit_softcapping': 50.0,
        'final_logit_softcapping': 30.0,
    },
    'gemma3_text': {'head_dim': 256, 'sliding_window': 4096, 'sliding_window_pattern': 6},
}


def gemma(config, where) -> Architecture:
    """Gemma 2 (soft caps of attention) and Gemma 3 (norms of queries and keys, and another rotary
    encoding in layers with a window). The last layer of every period has no window.
    """
    kind, third = config['model_type'], config['model_type'] == 'gemma3_text'
    config = {**_DEFAULTS[kind], **config}
    refuse(
        config,
        where,
        hidden_activation='gelu_pytorch_tanh',
        attention_bias=False,
        use_bidirectional_attention=False,
    )
    if third:
        refuse(config, where, attn_logit_softcapping=None)
    layers, step = config['num_hidden_layers'], config['sliding_window_pattern']
    usual = [
        'sliding_attention' if (layer + 1) % step else 'full_attention' for layer in range(layers)
    ]
    kinds, head_dim = layer_kinds(config, layers, where, usual), heads_of(config)[2]
    bases = {
        'sliding_attention': config.get('rope_local_base_freq', 1e4),
        'full_attention': config.get('rope_theta', 1e6),
    }
    of_kind = lambda kind: rope_of_kind(config, kind, bases[kind], where) if third else config
    cap = config.get('attn_logit_softcapping')
    capped = '' if cap is None else f' | soft_cap({float(cap)})'
    specs = [rotary_spec(of_kind(kind), head_dim, where) + capped for kind in kinds]
    cfg = gated_config(
        config,
        windowed(config, specs, kinds),
        train_len=trained_length(of_kind('full_attention'), where),
        mlp='geglu',
        norm_place='both',
        qk_norm='head' if third else 'none',
        embedding_scale=0.0,
        output_cap=float(config.get('final_logit_softcapping') or 0.0),
    )
    leaves = leaves_of(cfg, NAMES[kind], plus=1.0)
    # Attention divides by sqrt(head_dim), these models by another number.
    scale = (head_dim / config.get('query_pre_attn_scalar', 256)) ** 0.5
    scaled = 'attention.q_norm.scale' if third else 'attention.w_q'
    leaves[scaled] = dataclasses.replace(leaves[scaled], factor=scale)
    return with_output(config, cfg, leaves)
