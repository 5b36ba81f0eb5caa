"""GPT-2, GPT-NeoX, BLOOM and MPT: LayerNorm, feed-forward without a gate, joined projections."""

import math

from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.pretrained.choices import activation, refuse, rotary_spec
from posenc_jax.lab.pretrained.layout import (
    Architecture,
    Leaf,
    biased_layers,
    into_heads,
    joined_heads,
    out_of_heads,
    same,
    turned,
    with_output,
)
from posenc_jax.lab.pretrained.scaling import trained_length


def gpt_neox(config, where) -> Architecture:
    """GPT-NeoX and Pythia: attention and feed-forward in parallel, partial rotary encoding."""
    refuse(config, where, attention_bias=True)
    width, layers, heads, hidden, vocabulary = (
        config[name]
        for name in (
            'hidden_size',
            'num_hidden_layers',
            'num_attention_heads',
            'intermediate_size',
            'vocab_size',
        )
    )
    rotary = {'rotary_pct': 0.25, **config}  # 0.25 is the default of the architecture
    cfg = TransformerConfig(
        vocab_size=vocabulary,
        train_len=trained_length(config, where),
        layers=layers,
        width=width,
        heads=heads,
        encoding=rotary_spec(rotary, width // heads, where),
        mlp=activation(config, 'hidden_act', 'gelu', where),
        mlp_width=hidden,
        bias='all',
        norm='layernorm',
        epsilon=config.get('layer_norm_eps', 1e-5),
        parallel=config.get('use_parallel_residual', True),
        embedding_scale=1.0,
    )
    prefix = 'gpt_neox.layers.{}.'
    names = {
        'attention_norm': 'input_layernorm',
        'mlp_norm': 'post_attention_layernorm',
        'qkv': 'attention.query_key_value',
        'out': 'attention.dense',
        'in': 'mlp.dense_h_to_4h',
        'down': 'mlp.dense_4h_to_h',
    }
    joined = lambda part: joined_heads(heads, width // heads, part)
    leaves = {
        'embedding': Leaf('gpt_neox.embed_in.weight', (vocabulary, width), same),
        'norm.scale': Leaf('gpt_neox.final_layer_norm.weight', (width,), same),
        'norm.bias': Leaf('gpt_neox.final_layer_norm.bias', (width,), same),
        **biased_layers(
            prefix=prefix, names=names, width=width, hidden=hidden, heads=heads, joined=joined
        ),
    }
    buffers = (
        f'{prefix}attention.{name}' for name in ('rotary_emb.inv_freq', 'bias', 'masked_bias')
    )
    return with_output(config, cfg, leaves, *buffers, name='embed_out.weight', tied=False)


def bloom(config, where) -> Architecture:
    """BLOOM: ALiBi, and a norm after the embedding."""
    refuse(config, where, apply_residual_connection_post_layernorm=False)
    width = config.get('hidden_size') or config['n_embed']
    layers, heads = (
        config.get('n_layer') or config['num_hidden_layers'],
        config.get('n_head') or config['num_attention_heads'],
    )
    vocabulary, hidden = config['vocab_size'], 4 * width
    cfg = TransformerConfig(
        vocab_size=vocabulary,
        train_len=config.get('seq_length') or 2048,
        layers=layers,
        width=width,
        heads=heads,
        encoding='alibi()',
        mlp='gelu',
        mlp_width=hidden,
        bias='all',
        norm='layernorm',
        epsilon=config.get('layer_norm_epsilon', 1e-5),
        embedding_norm=True,
        embedding_scale=1.0,
    )
    top, prefix = 'transformer.', 'transformer.h.{}.'
    names = {
        'attention_norm': 'input_layernorm',
        'mlp_norm': 'post_attention_layernorm',
        'qkv': 'self_attention.query_key_value',
        'out': 'self_attention.dense',
        'in': 'mlp.dense_h_to_4h',
        'down': 'mlp.dense_4h_to_h',
    }
    joined = lambda part: joined_heads(heads, width // heads, part)
    leaves = {
        'embedding': Leaf(f'{top}word_embeddings.weight', (vocabulary, width), same),
        'embedding_norm.scale': Leaf(f'{top}word_embeddings_layernorm.weight', (width,), same),
        'embedding_norm.bias': Leaf(f'{top}word_embeddings_layernorm.bias', (width,), same),
        'norm.scale': Leaf(f'{top}ln_f.weight', (width,), same),
        'norm.bias': Leaf(f'{top}ln_f.bias', (width,), same),
        **biased_layers(
            prefix=prefix, names=names, width=width, hidden=hidden, heads=heads, joined=joined
        ),
    }
    return with_output(config, cfg, leaves)


def gpt2(config, where) -> Architecture:
    """GPT-2: a learned table of positions. Matrices are stored with the input axis first."""
    refuse(
        config,
        where,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    width, layers, heads, vocabulary = (
        config[name] for name in ('n_embd', 'n_layer', 'n_head', 'vocab_size')
    )
    hidden, positions = (
        config.get('n_inner') or 4 * width,
        config.get('n_positions') or config['n_ctx'],
    )
    head_dim = width // heads
    cfg = TransformerConfig(
        vocab_size=vocabulary,
        train_len=positions,
        layers=layers,
        width=width,
        heads=heads,
        encoding=f'learned_absolute(max_len={positions})',
        mlp=activation(config, 'activation_function', 'gelu_new', where),
        mlp_width=hidden,
        bias='all',
        norm='layernorm',
        epsilon=config.get('layer_norm_epsilon', 1e-5),
        embedding_scale=1.0,
    )
    top, prefix = 'transformer.', 'transformer.h.{}.'
    leaves = {
        'embedding': Leaf(f'{top}wte.weight', (vocabulary, width), same),
        'shared.0.vectors': Leaf(f'{top}wpe.weight', (positions, width), same),
        'norm.scale': Leaf(f'{top}ln_f.weight', (width,), same),
        'norm.bias': Leaf(f'{top}ln_f.bias', (width,), same),
    }
    for ours, theirs in (('attention_norm', 'ln_1'), ('mlp_norm', 'ln_2')):
        leaves[f'{ours}.scale'] = Leaf(f'{prefix}{theirs}.weight', (width,), same)
        leaves[f'{ours}.bias'] = Leaf(f'{prefix}{theirs}.bias', (width,), same)
    for part, name in enumerate('qkv'):
        cut = slice(part * width, (part + 1) * width)
        weight = lambda w, cut=cut: w[:, cut].reshape(width, heads, head_dim)
        leaves[f'attention.w_{name}'] = Leaf(
            f'{prefix}attn.c_attn.weight', (width, 3 * width), weight
        )
        leaves[f'attention.b_{name}'] = Leaf(
            f'{prefix}attn.c_attn.bias',
            (3 * width,),
            lambda b, cut=cut: b[cut].reshape(heads, head_dim),
        )
    leaves['attention.w_out'] = Leaf(
        f'{prefix}attn.c_proj.weight', (width, width), lambda w: w.reshape(heads, head_dim, width)
    )
    leaves['attention.b_out'] = Leaf(f'{prefix}attn.c_proj.bias', (width,), same)
    leaves['mlp.w_in'] = Leaf(f'{prefix}mlp.c_fc.weight', (width, hidden), same)
    leaves['mlp.b_in'] = Leaf(f'{prefix}mlp.c_fc.bias', (hidden,), same)
    leaves['mlp.w_out'] = Leaf(f'{prefix}mlp.c_proj.weight', (hidden, width), same)
    leaves['mlp.b_out'] = Leaf(f'{prefix}mlp.c_proj.bias', (width,), same)
    return with_output(config, cfg, leaves, f'{prefix}attn.bias', f'{prefix}attn.masked_bias')


def mpt_slopes(heads: int, largest: float = 8.0) -> tuple[float, ...]:
    """The ALiBi slopes of MPT: `2^(-largest h / n)`, h = 1 .. n, for n heads, a power of two.

    For other numbers of heads n is the next power of two, and the first slopes of the order h = 2,
    4, .., 1, 3, .. are taken.

    Args:
      heads: number of heads.
      largest: the exponent of the smallest slope, `alibi_bias_max` in the config.

    Example:
      >>> mpt_slopes(3)
      (0.0625, 0.00390625, 0.25)
    """
    power = 2 ** math.ceil(math.log2(heads))
    slopes = [2.0 ** (-(largest / power) * h) for h in range(1, power + 1)]
    return tuple(slopes if power == heads else (slopes[1::2] + slopes[::2])[:heads])


def mpt(config, where) -> Architecture:
    """MPT: ALiBi, and no biases, also in the norms."""
    attention = config.get('attn_config') or {}
    refuse(config, where, no_bias=True, expansion_ratio=4, embedding_fraction=1.0, logit_scale=None)
    refuse(
        attention,
        f'{where}, attn_config',
        alibi=True,
        qk_ln=False,
        clip_qkv=None,
        softmax_scale=None,
        prefix_lm=False,
        rope=False,
    )
    width, layers, heads, vocabulary = (
        config[name] for name in ('d_model', 'n_layers', 'n_heads', 'vocab_size')
    )
    head_dim, hidden = width // heads, 4 * width
    cfg = TransformerConfig(
        vocab_size=vocabulary,
        train_len=config['max_seq_len'],
        layers=layers,
        width=width,
        heads=heads,
        encoding=f'alibi(slopes={mpt_slopes(heads, attention.get("alibi_bias_max", 8))})',
        mlp='gelu_erf',
        mlp_width=hidden,
        norm='layernorm_scale',
        epsilon=config.get('layer_norm_epsilon', 1e-5),
        embedding_scale=1.0,
    )
    top, prefix = 'transformer.', 'transformer.blocks.{}.'
    leaves = {
        'embedding': Leaf(f'{top}wte.weight', (vocabulary, width), same),
        'norm.scale': Leaf(f'{top}norm_f.weight', (width,), same),
        'attention_norm.scale': Leaf(f'{prefix}norm_1.weight', (width,), same),
        'mlp_norm.scale': Leaf(f'{prefix}norm_2.weight', (width,), same),
        'attention.w_out': Leaf(
            f'{prefix}attn.out_proj.weight', (width, width), out_of_heads(width, heads, head_dim)
        ),
        'mlp.w_in': Leaf(f'{prefix}ffn.up_proj.weight', (hidden, width), turned),
        'mlp.w_out': Leaf(f'{prefix}ffn.down_proj.weight', (width, hidden), turned),
    }
    for part, name in enumerate('qkv'):
        cut = slice(part * width, (part + 1) * width)
        into = into_heads(width, heads, head_dim)
        leaves[f'attention.w_{name}'] = Leaf(
            f'{prefix}attn.Wqkv.weight',
            (3 * width, width),
            lambda w, cut=cut, into=into: into(w[cut]),
        )
    return with_output(config, cfg, leaves)
