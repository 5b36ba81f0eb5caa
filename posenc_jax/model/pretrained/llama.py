"""Llama, Mistral, Qwen2 and Phi-3: RMSNorm, SwiGLU, rotary encoding, grouped-query attention."""

import numpy as np

from posenc_jax.model.config import TransformerConfig
from posenc_jax.model.pretrained.choices import heads_of, refuse, rotary_spec, windowed_pattern
from posenc_jax.model.pretrained.layout import (
    Architecture,
    Leaf,
    into_heads,
    out_of_heads,
    per_head,
    same,
    turned,
    with_output,
)
from posenc_jax.model.pretrained.scaling import trained_length


def llama(config, where) -> Architecture:
    """Llama, Mistral, Qwen2 (biases on query, key and value) and Phi-3 (joined projections)."""
    kind = config['model_type']
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
    width, layers, hidden, vocabulary = (
        config[name]
        for name in ('hidden_size', 'num_hidden_layers', 'intermediate_size', 'vocab_size')
    )
    heads, kv_heads, head_dim = heads_of(config)
    pattern = windowed_pattern(config, rotary_spec(config, head_dim, where), layers, where)
    cfg = TransformerConfig(
        vocab_size=vocabulary,
        train_len=trained_length(config, where),
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        encoding=pattern[0],
        pattern=pattern if len(pattern) > 1 else (),
        mlp='swiglu',
        mlp_width=hidden,
        bias='qkv' if kind == 'qwen2' else 'none',
        norm='rmsnorm',
        epsilon=config['rms_norm_eps'],
        embedding_scale=1.0,
    )
    layer = 'model.layers.{}.'
    sizes = {'q': heads, 'k': kv_heads, 'v': kv_heads}
    leaves = {
        'embedding': Leaf('model.embed_tokens.weight', (vocabulary, width), same),
        'norm.scale': Leaf('model.norm.weight', (width,), same),
        'attention_norm.scale': Leaf(f'{layer}input_layernorm.weight', (width,), same),
        'mlp_norm.scale': Leaf(f'{layer}post_attention_layernorm.weight', (width,), same),
        'attention.w_out': Leaf(
            f'{layer}self_attn.o_proj.weight',
            (width, heads * head_dim),
            out_of_heads(width, heads, head_dim),
        ),
        'mlp.w_out': Leaf(f'{layer}mlp.down_proj.weight', (width, hidden), turned),
    }
    if kind == 'phi3':
        rows = [n * head_dim for n in sizes.values()]
        edges = np.cumsum([0, *rows])
        for (name, n), low, high in zip(sizes.items(), edges, edges[1:]):
            cut = lambda w, n=n, low=low, high=high: into_heads(width, n, head_dim)(w[low:high])
            leaves[f'attention.w_{name}'] = Leaf(
                f'{layer}self_attn.qkv_proj.weight', (int(edges[-1]), width), cut
            )
        both = (f'{layer}mlp.gate_up_proj.weight', (2 * hidden, width))
        leaves['mlp.w_gate'] = Leaf(*both, lambda w: w[:hidden].T)
        leaves['mlp.w_in'] = Leaf(*both, lambda w: w[hidden:].T)
    else:
        for name, n in sizes.items():
            projection = f'{layer}self_attn.{name}_proj'
            leaves[f'attention.w_{name}'] = Leaf(
                f'{projection}.weight', (n * head_dim, width), into_heads(width, n, head_dim)
            )
            if kind == 'qwen2':
                leaves[f'attention.b_{name}'] = Leaf(
                    f'{projection}.bias', (n * head_dim,), per_head(n, head_dim)
                )
        leaves['mlp.w_gate'] = Leaf(f'{layer}mlp.gate_proj.weight', (hidden, width), turned)
        leaves['mlp.w_in'] = Leaf(f'{layer}mlp.up_proj.weight', (hidden, width), turned)
    return with_output(config, cfg, leaves, f'{layer}self_attn.rotary_emb.inv_freq', tied=False)
