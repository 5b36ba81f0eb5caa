"""GPT-2, GPT-NeoX, BLOOM and MPT: LayerNorm, feed-forward without a gate, joined projections."""

import math

from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.pretrained.choices import activation, refuse, rotary_spec
from posenc_jax.lab.pretrained.layout import (
    Architecture,
    Leaf,
    into_heads,
    joined_heads,
    out_of_heads,
    per_head,
    same,
    turned,
    with_output,
)
from posenc_jax.lab.pretrained.scaling import trained_length

# Names of tensors, without '.weight' and '.bias'; '{}' stands for the number of a layer.
_NAMES = {
    'gpt_neox': {
        'embedding': 'gpt_neox.embed_in',
        'norm': 'gpt_neox.final_layer_norm',
        'attention_norm': 'gpt_neox.layers.{}.input_layernorm',
        'mlp_norm': 'gpt_neox.layers.{}.post_attention_layernorm',
        'qkv': 'gpt_neox.layers.{}.attention.query_key_value',
        'out': 'gpt_neox.layers.{}.attention.dense',
        'in': 'gpt_neox.layers.{}.mlp.dense_h_to_4h',
        'down': 'gpt_neox.layers.{}.mlp.dense_4h_to_h',
    },
    'bloom': {
        'embedding': 'transformer.word_embeddings',
        'embedding_norm': 'transformer.word_embeddings_layernorm',
        'norm': 'transformer.ln_f',
        'attention_norm': 'transformer.h.{}.input_layernorm',
        'mlp_norm': 'transformer.h.{}.post_attention_layernorm',
        'qkv': 'transformer.h.{}.self_attention.query_key_value',
        'out': 'transformer.h.{}.self_attention.dense',
        'in': 'transformer.h.{}.mlp.dense_h_to_4h',
        'down': 'transformer.h.{}.mlp.dense_4h_to_h',
    },
    'gpt2': {
        'embedding': 'transformer.wte',
        'norm': 'transformer.ln_f',
        'attention_norm': 'transformer.h.{}.ln_1',
        'mlp_norm': 'transformer.h.{}.ln_2',
        'qkv': 'transformer.h.{}.attn.c_attn',
        'out': 'transformer.h.{}.attn.c_proj',
        'in': 'transformer.h.{}.mlp.c_fc',
        'down': 'transformer.h.{}.mlp.c_proj',
    },
    'mpt': {
        'embedding': 'transformer.wte',
        'norm': 'transformer.norm_f',
        'attention_norm': 'transformer.blocks.{}.norm_1',
        'mlp_norm': 'transformer.blocks.{}.norm_2',
        'qkv': 'transformer.blocks.{}.attn.Wqkv',
        'out': 'transformer.blocks.{}.attn.out_proj',
        'in': 'transformer.blocks.{}.ffn.up_proj',
        'down': 'transformer.blocks.{}.ffn.down_proj',
    },
}
_MASKS = ('bias', 'masked_bias')  # buffers that are stored beside the weights


def gpt_neox(config, where) -> Architecture:
    """GPT-NeoX and Pythia: attention and feed-forward in parallel, partial rotary encoding."""
    refuse(config, where, attention_bias=True)
    width, heads = config['hidden_size'], config['num_attention_heads']
    rotary = {'rotary_pct': 0.25, **config}  # 0.25 is the default of the architecture
    cfg = _config(
        config,
        train_len=trained_length(config, where),
        layers=config['num_hidden_layers'],
        width=width,
        heads=heads,
        encoding=rotary_spec(rotary, width // heads, where),
        mlp=activation(config, 'hidden_act', 'gelu', where),
        mlp_width=config['intermediate_size'],
        epsilon=config.get('layer_norm_eps', 1e-5),
        parallel=config.get('use_parallel_residual', True),
    )
    leaves, buffers = _leaves('gpt_neox', cfg, by_head=True), ('rotary_emb.inv_freq', *_MASKS)
    ignored = (f'gpt_neox.layers.{{}}.attention.{name}' for name in buffers)
    return with_output(config, cfg, leaves, *ignored, name='embed_out.weight', tied=False)


def bloom(config, where) -> Architecture:
    """BLOOM: ALiBi, and a norm after the embedding."""
    refuse(config, where, apply_residual_connection_post_layernorm=False)
    width = config.get('hidden_size') or config['n_embed']
    cfg = _config(
        config,
        train_len=config.get('seq_length') or 2048,
        layers=config.get('n_layer') or config['num_hidden_layers'],
        width=width,
        heads=config.get('n_head') or config['num_attention_heads'],
        encoding='alibi()',
        mlp='gelu',
        mlp_width=4 * width,
        embedding_norm=True,
    )
    return with_output(config, cfg, _leaves('bloom', cfg, by_head=True))


def gpt2(config, where) -> Architecture:
    """GPT-2: a learned table of positions. Matrices are stored with the input axis first."""
    refuse(
        config,
        where,
        scale_attn_weights=True,
        scale_attn_by_inverse_layer_idx=False,
        add_cross_attention=False,
    )
    width, positions = config['n_embd'], config.get('n_positions') or config['n_ctx']
    cfg = _config(
        config,
        train_len=positions,
        layers=config['n_layer'],
        width=width,
        heads=config['n_head'],
        encoding=f'learned_absolute(max_len={positions})',
        mlp=activation(config, 'activation_function', 'gelu_new', where),
        mlp_width=config.get('n_inner') or 4 * width,
    )
    leaves = _leaves('gpt2', cfg, input_first=True)
    leaves['shared.0.vectors'] = Leaf('transformer.wpe.weight', (positions, width), same)
    ignored = (f'transformer.h.{{}}.attn.{name}' for name in _MASKS)
    return with_output(config, cfg, leaves, *ignored)


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
    width, heads = config['d_model'], config['n_heads']
    cfg = _config(
        config,
        train_len=config['max_seq_len'],
        layers=config['n_layers'],
        width=width,
        heads=heads,
        encoding=f'alibi(slopes={mpt_slopes(heads, attention.get("alibi_bias_max", 8))})',
        mlp='gelu_erf',
        mlp_width=4 * width,
        bias='none',
        norm='layernorm_scale',
    )
    return with_output(config, cfg, _leaves('mpt', cfg))


def _config(config, **own) -> TransformerConfig:
    """The config of a model with LayerNorm, biases everywhere, and a plain embedding, apart from
    what the architecture sets itself.
    """
    usual = dict(bias='all', norm='layernorm', epsilon=config.get('layer_norm_epsilon', 1e-5))
    return TransformerConfig(
        vocab_size=config['vocab_size'], embedding_scale=1.0, **{**usual, **own}
    )


def _leaves(
    kind: str, cfg: TransformerConfig, *, by_head: bool = False, input_first: bool = False
) -> dict[str, Leaf]:
    """The leaves of such a model, without the output.

    Args:
      kind: key of `_NAMES`.
      cfg: of the model.
      by_head: whether the rows of the joined projection are grouped as [heads, 3, head_dim], and
        not as [3, heads, head_dim].
      input_first: whether matrices are stored with the input axis first.
    """
    names, leaves = _NAMES[kind], {}
    width, hidden, heads, head_dim = cfg.width, cfg.mlp_width, cfg.heads, cfg.head_dim

    def matrix(ours, name, shape, change):
        stored, read = (shape[::-1], lambda w: change(w.T)) if input_first else (shape, change)
        leaves[ours] = Leaf(f'{name}.weight', stored, read)

    def bias(ours, name, size, change=same):
        if cfg.bias == 'all':
            leaves[ours] = Leaf(f'{name}.bias', (size,), change)

    leaves['embedding'] = Leaf(f'{names["embedding"]}.weight', (cfg.vocab_size, width), same)
    for norm in (name for name in names if name.endswith('norm')):
        leaves[f'{norm}.scale'] = Leaf(f'{names[norm]}.weight', (width,), same)
        bias(f'{norm}.bias', names[norm], width)
    for number, part in enumerate('qkv'):
        if by_head:
            weight_of, bias_of = joined_heads(heads, head_dim, number)
        else:
            weight_of, bias_of = _cut(cfg, number)
        matrix(f'attention.w_{part}', names['qkv'], (3 * width, width), weight_of)
        bias(f'attention.b_{part}', names['qkv'], 3 * width, bias_of)
    out = out_of_heads(width, heads, head_dim)
    matrix('attention.w_out', names['out'], (width, width), out)
    bias('attention.b_out', names['out'], width)
    matrix('mlp.w_in', names['in'], (hidden, width), turned)
    bias('mlp.b_in', names['in'], hidden)
    matrix('mlp.w_out', names['down'], (width, hidden), turned)
    bias('mlp.b_out', names['down'], width)
    return leaves


def _cut(cfg: TransformerConfig, number: int):
    """The changes that take query, key or value out of a joined matrix and out of a joined bias,
    where they stand one after the other.
    """
    at = slice(number * cfg.width, (number + 1) * cfg.width)
    sizes = cfg.heads, cfg.head_dim
    return (lambda w: into_heads(cfg.width, *sizes)(w[at])), (lambda b: per_head(*sizes)(b[at]))
