"""Which tensor of a public checkpoint is which variable of a `Transformer`, architecture by
architecture.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from posenc_jax.core.registry import nearest
from posenc_jax.model.config import TransformerConfig
from posenc_jax.model.pretrained.config_fields import checked
from posenc_jax.model.pretrained.fields import PretrainedError, shown
from posenc_jax.model.pretrained.scaling import parameters, rope_spec, trained_length

Change = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One variable: the tensor it comes from ('{}' stands for the number of the layer) and what is
    done to it.

    Attributes:
      name: of the tensor.
      shape: the tensor's shape in the checkpoint.
      change: stored layout -> ours. It only picks and reorders numbers, so that it can be undone by
        applying it to indices.
    """

    name: str
    shape: tuple[int, ...]
    change: Change


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A checkpoint in our terms.

    Attributes:
      cfg: what the `Transformer` is built from.
      leaves: variable within the model, without the place in the period ('embedding',
        'attention.w_q') -> its tensor.
      ignored: names (with '{}' for the layer) of tensors that follow from the config.
    """

    cfg: TransformerConfig
    leaves: Mapping[str, Leaf]
    ignored: tuple[str, ...] = ()


def same(a: np.ndarray) -> np.ndarray:
    return a


def turned(a: np.ndarray) -> np.ndarray:
    return a.T


def describe(config: dict[str, Any], where: object) -> Architecture:
    """The architecture of a config.

    Args:
      config: of the checkpoint, as `config.json` has it.
      where: what messages call it.

    Raises:
      PretrainedError: an unknown architecture, a missing size, or a choice that the model does not
        have.
    """
    kind = config.get('model_type')
    if not isinstance(kind, str) or kind not in ARCHITECTURES:
        raise PretrainedError(
            f'{where}: unknown architecture {shown(kind)}; '
            f'{nearest(str(kind)[:100], ARCHITECTURES)}'
        )
    if config.get('quantization_config'):
        raise PretrainedError(
            f'{where}: quantization_config is not supported, expected weights in floating point'
        )
    config = checked(config, where)
    try:
        return ARCHITECTURES[kind](config, where)
    except KeyError as error:
        raise PretrainedError(f'{where}: the config of a {kind} model lacks {error}') from None
    except PretrainedError:
        raise
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise PretrainedError(
            f'{where}: the config of this {kind} model has a value that does not fit: {error}'
        ) from error


# Of the released names, which are those of `transformers`, ours.
_ACTIVATIONS = {
    'gelu': 'gelu_erf',
    'gelu_new': 'gelu',
    'gelu_fast': 'gelu',
    'gelu_pytorch_tanh': 'gelu',
}


def _activation(config, name: str, default: str, where) -> str:
    found = config.get(name, default)
    if found not in _ACTIVATIONS:
        raise PretrainedError(f'{where}: {name}={found!r}; {nearest(str(found), _ACTIVATIONS)}')
    return _ACTIVATIONS[found]


def _refuse(config, where, **expected):
    """Choices that exist in a family and change what is computed; null is the usual one."""
    for name, wanted in expected.items():
        found = config.get(name)
        if found is not None and found != wanted:
            raise PretrainedError(
                f'{where}: {name}={shown(found)} is not supported, expected {wanted!r}'
            )


def _heads(config):
    heads = config['num_attention_heads']
    return (
        heads,
        config.get('num_key_value_heads') or heads,
        config.get('head_dim') or config['hidden_size'] // heads,
    )


def _rope(config, head_dim: int, where) -> str:
    """The rotary encoding, where lists of factors are as long as a head has planes to turn."""
    spec, found = rope_spec(config, where), parameters(config, where)
    planes = int(head_dim * found.get('partial_rotary_factor', 1.0)) // 2
    for name in ('long_factor', 'short_factor'):
        if isinstance(factors := found.get(name), list) and len(factors) != planes:
            raise PretrainedError(
                f'{where}: {name} has {len(factors)} entries, expected {planes}, half of what '
                f'turns of a head of {head_dim}'
            )
    return spec


def _windows(config, spec: str, layers: int, where) -> tuple[str, ...]:
    """The encoding of each layer of one period: with a sliding window where the config says so."""
    size, kind = config.get('sliding_window'), config['model_type']
    kinds = config.get('layer_types')
    if unknown := sorted(set(kinds or ()) - {'full_attention', 'sliding_attention'}):
        raise PretrainedError(
            f'{where}: layer_types has {shown(unknown[0])}, expected full_attention or '
            'sliding_attention'
        )
    if kinds is not None and len(kinds) != layers:
        raise PretrainedError(
            f'{where}: layer_types has {len(kinds)} entries, expected one for each of {layers} '
            'layers'
        )
    used = (
        config.get('use_sliding_window', kind != 'qwen2') and kind != 'llama'
    )  # Llama's window is not one of the family
    if size is None or not used:
        return (spec,)
    windowed = f'{spec} | window(size={size})'
    if kinds is None:  # Qwen2: the first max_window_layers layers see everything
        first = min(config.get('max_window_layers', 0), layers) if kind == 'qwen2' else 0
        kinds = ['full_attention'] * first + ['sliding_attention'] * (layers - first)
    specs = [windowed if kind == 'sliding_attention' else spec for kind in kinds]
    for period in range(1, layers + 1):
        if layers % period == 0 and specs == specs[:period] * (layers // period):
            return tuple(specs[:period])
    raise AssertionError('the whole is a period of itself')


def _into(width, heads, head_dim) -> Change:
    """A matrix [heads * head_dim, width] as ours, [width, heads, head_dim]."""
    return lambda w: w.T.reshape(width, heads, head_dim)


def _out_of(width, heads, head_dim) -> Change:
    return lambda w: w.T.reshape(heads, head_dim, width)


def _per_head(heads, head_dim) -> Change:
    return lambda b: b.reshape(heads, head_dim)


def _with_head(
    config,
    cfg: TransformerConfig,
    leaves: dict[str, Leaf],
    *ignored: str,
    name: str = 'lm_head.weight',
    tied: bool = True,
) -> Architecture:
    """The table of the embedding is the output, or a tensor is; `tied` is the rule where the config
    does not say.
    """
    said = config.get('tie_word_embeddings')
    cfg = dataclasses.replace(cfg, tie=tied if said is None else bool(said))
    if cfg.tie:
        return Architecture(cfg, leaves, (*ignored, name))
    return Architecture(
        cfg, {**leaves, 'output': Leaf(name, (cfg.vocab_size, cfg.width), turned)}, ignored
    )


def _llama(config, where) -> Architecture:
    """Llama, Mistral, Qwen2, Phi-3: RMSNorm, SwiGLU, rotary, grouped queries; Phi-3 stores joined
    projections.
    """
    kind = config['model_type']
    _refuse(
        config,
        where,
        hidden_act='silu',
        mlp_bias=False,
        attn_logit_softcapping=None,
        logits_scaling=1.0,
    )
    if kind != 'qwen2':
        _refuse(config, where, attention_bias=False)
    width, layers, hidden, vocabulary = (
        config[name]
        for name in ('hidden_size', 'num_hidden_layers', 'intermediate_size', 'vocab_size')
    )
    heads, kv_heads, head_dim = _heads(config)
    pattern = _windows(config, _rope(config, head_dim, where), layers, where)
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
            _out_of(width, heads, head_dim),
        ),
        'mlp.w_out': Leaf(f'{layer}mlp.down_proj.weight', (width, hidden), turned),
    }
    if kind == 'phi3':
        rows = [n * head_dim for n in sizes.values()]
        edges = np.cumsum([0, *rows])
        for (name, n), low, high in zip(sizes.items(), edges, edges[1:]):
            cut = lambda w, n=n, low=low, high=high: _into(width, n, head_dim)(w[low:high])
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
                f'{projection}.weight', (n * head_dim, width), _into(width, n, head_dim)
            )
            if kind == 'qwen2':
                leaves[f'attention.b_{name}'] = Leaf(
                    f'{projection}.bias', (n * head_dim,), _per_head(n, head_dim)
                )
        leaves['mlp.w_gate'] = Leaf(f'{layer}mlp.gate_proj.weight', (hidden, width), turned)
        leaves['mlp.w_in'] = Leaf(f'{layer}mlp.up_proj.weight', (hidden, width), turned)
    return _with_head(config, cfg, leaves, f'{layer}self_attn.rotary_emb.inv_freq', tied=False)


def _joined_heads(heads, head_dim, part) -> tuple[Change, Change]:
    """Query, key or value (`part` 0, 1, 2) of rows grouped as [heads, 3, head_dim]: of the matrix,
    of the bias.
    """
    rows = lambda w: w.reshape(heads, 3, head_dim, *w.shape[1:])[:, part]
    return lambda w: np.moveaxis(rows(w), -1, 0), rows


def _biased(*, prefix, names, width, hidden, heads, joined) -> dict[str, Leaf]:
    """The layers of GPT-NeoX and BLOOM: LayerNorm, biases everywhere, joined query, key and
    value.
    """
    head_dim = width // heads
    leaves = {}
    for name in ('attention_norm', 'mlp_norm'):
        leaves[f'{name}.scale'] = Leaf(f'{prefix}{names[name]}.weight', (width,), same)
        leaves[f'{name}.bias'] = Leaf(f'{prefix}{names[name]}.bias', (width,), same)
    for part, name in enumerate('qkv'):
        weight, bias = joined(part)
        leaves[f'attention.w_{name}'] = Leaf(
            f'{prefix}{names["qkv"]}.weight', (3 * width, width), weight
        )
        leaves[f'attention.b_{name}'] = Leaf(f'{prefix}{names["qkv"]}.bias', (3 * width,), bias)
    out, in_, down = (f'{prefix}{names[name]}' for name in ('out', 'in', 'down'))
    leaves['attention.w_out'] = Leaf(
        f'{out}.weight', (width, width), _out_of(width, heads, head_dim)
    )
    leaves['attention.b_out'] = Leaf(f'{out}.bias', (width,), same)
    leaves['mlp.w_in'] = Leaf(f'{in_}.weight', (hidden, width), turned)
    leaves['mlp.b_in'] = Leaf(f'{in_}.bias', (hidden,), same)
    leaves['mlp.w_out'] = Leaf(f'{down}.weight', (width, hidden), turned)
    leaves['mlp.b_out'] = Leaf(f'{down}.bias', (width,), same)
    return leaves


def _gpt_neox(config, where) -> Architecture:
    """GPT-NeoX and Pythia: parallel branches, partial rotary."""
    _refuse(config, where, attention_bias=True)
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
    rotary = {
        'rotary_pct': 0.25,
        **config,
    }  # the default of the architecture, where a config leaves it out
    cfg = TransformerConfig(
        vocab_size=vocabulary,
        train_len=trained_length(config, where),
        layers=layers,
        width=width,
        heads=heads,
        encoding=_rope(rotary, width // heads, where),
        mlp=_activation(config, 'hidden_act', 'gelu', where),
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
    joined = lambda part: _joined_heads(heads, width // heads, part)
    leaves = {
        'embedding': Leaf('gpt_neox.embed_in.weight', (vocabulary, width), same),
        'norm.scale': Leaf('gpt_neox.final_layer_norm.weight', (width,), same),
        'norm.bias': Leaf('gpt_neox.final_layer_norm.bias', (width,), same),
        **_biased(
            prefix=prefix, names=names, width=width, hidden=hidden, heads=heads, joined=joined
        ),
    }
    buffers = (
        f'{prefix}attention.{name}' for name in ('rotary_emb.inv_freq', 'bias', 'masked_bias')
    )
    return _with_head(config, cfg, leaves, *buffers, name='embed_out.weight', tied=False)


def _bloom(config, where) -> Architecture:
    """BLOOM: ALiBi, a norm after the embedding."""
    _refuse(config, where, apply_residual_connection_post_layernorm=False)
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
    joined = lambda part: _joined_heads(heads, width // heads, part)
    leaves = {
        'embedding': Leaf(f'{top}word_embeddings.weight', (vocabulary, width), same),
        'embedding_norm.scale': Leaf(f'{top}word_embeddings_layernorm.weight', (width,), same),
        'embedding_norm.bias': Leaf(f'{top}word_embeddings_layernorm.bias', (width,), same),
        'norm.scale': Leaf(f'{top}ln_f.weight', (width,), same),
        'norm.bias': Leaf(f'{top}ln_f.bias', (width,), same),
        **_biased(
            prefix=prefix, names=names, width=width, hidden=hidden, heads=heads, joined=joined
        ),
    }
    return _with_head(config, cfg, leaves)


def _gpt2(config, where) -> Architecture:
    """GPT-2: a learned table; matrices are stored input first."""
    _refuse(
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
        mlp=_activation(config, 'activation_function', 'gelu_new', where),
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
    return _with_head(config, cfg, leaves, f'{prefix}attn.bias', f'{prefix}attn.masked_bias')


def mpt_slopes(heads: int, largest: float = 8.0) -> tuple[float, ...]:
    """The slopes of MPT: those of the next power of two, every second one first.

    Example:
      >>> mpt_slopes(3)
      (0.0625, 0.00390625, 0.25)
    """
    power = 2 ** math.ceil(math.log2(heads))
    slopes = [2.0 ** (-(largest / power) * h) for h in range(1, power + 1)]
    return tuple(slopes if power == heads else (slopes[1::2] + slopes[::2])[:heads])


def _mpt(config, where) -> Architecture:
    """MPT: ALiBi, no biases, norms without bias."""
    attention = config.get('attn_config') or {}
    _refuse(
        config, where, no_bias=True, expansion_ratio=4, embedding_fraction=1.0, logit_scale=None
    )
    _refuse(
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
            f'{prefix}attn.out_proj.weight', (width, width), _out_of(width, heads, head_dim)
        ),
        'mlp.w_in': Leaf(f'{prefix}ffn.up_proj.weight', (hidden, width), turned),
        'mlp.w_out': Leaf(f'{prefix}ffn.down_proj.weight', (width, hidden), turned),
    }
    for part, name in enumerate('qkv'):
        cut = slice(part * width, (part + 1) * width)
        into = _into(width, heads, head_dim)
        leaves[f'attention.w_{name}'] = Leaf(
            f'{prefix}attn.Wqkv.weight',
            (3 * width, width),
            lambda w, cut=cut, into=into: into(w[cut]),
        )
    return _with_head(config, cfg, leaves)


ARCHITECTURES: dict[str, Callable[[dict[str, Any], object], Architecture]] = {
    'llama': _llama,
    'mistral': _llama,
    'qwen2': _llama,
    'phi3': _llama,
    'gpt_neox': _gpt_neox,
    'gpt2': _gpt2,
    'bloom': _bloom,
    'mpt': _mpt,
}
