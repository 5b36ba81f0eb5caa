"""GPT-2, GPT-NeoX, BLOOM and MPT: LayerNorm, feed-forward without a gate, joined projections."""

import math

from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.pretrained.choices import activation, refuse, rotary_spec
from posenc_jax.lab.pretrained.layout import Architecture, Leaf, leaves_of, same, with_output
from posenc_jax.lab.pretrained.scaling import trained_length
from posenc_jax.lab.pretrained.tensor_names import NAMES

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
    leaves = leaves_of(cfg, NAMES['gpt_neox'], by_head=True)
    buffers = ('rotary_emb.inv_freq', *_MASKS)
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
    return with_output(config, cfg, leaves_of(cfg, NAMES['bloom'], by_head=True))


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
    leaves = leaves_of(cfg, NAMES['gpt2'], input_first=True)
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
    return with_output(config, cfg, leaves_of(cfg, NAMES['mpt']))


def _config(config, **own) -> TransformerConfig:
    """The config of a model with LayerNorm, biases everywhere, and a plain embedding, apart from
    what the architecture sets itself.
    """
    usual = dict(bias='all', norm='layernorm', epsilon=config.get('layer_norm_epsilon', 1e-5))
    return TransformerConfig(
        vocab_size=config['vocab_size'], embedding_scale=1.0, **{**usual, **own}
    )
