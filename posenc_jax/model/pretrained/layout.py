"""How tensors of a public checkpoint are laid out: which tensor is which variable of a
`Transformer`, and the reordering from the stored layout. The architectures share what is here.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from posenc_jax.model.config import TransformerConfig

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


def into_heads(width, heads, head_dim) -> Change:
    """A matrix [heads * head_dim, width] as ours, [width, heads, head_dim]."""
    return lambda w: w.T.reshape(width, heads, head_dim)


def out_of_heads(width, heads, head_dim) -> Change:
    return lambda w: w.T.reshape(heads, head_dim, width)


def per_head(heads, head_dim) -> Change:
    return lambda b: b.reshape(heads, head_dim)


def with_output(
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


def joined_heads(heads, head_dim, part) -> tuple[Change, Change]:
    """Query, key or value (`part` 0, 1, 2) of rows grouped as [heads, 3, head_dim]: of the matrix,
    of the bias.
    """
    rows = lambda w: w.reshape(heads, 3, head_dim, *w.shape[1:])[:, part]
    return lambda w: np.moveaxis(rows(w), -1, 0), rows


def biased_layers(*, prefix, names, width, hidden, heads, joined) -> dict[str, Leaf]:
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
        f'{out}.weight', (width, width), out_of_heads(width, heads, head_dim)
    )
    leaves['attention.b_out'] = Leaf(f'{out}.bias', (width,), same)
    leaves['mlp.w_in'] = Leaf(f'{in_}.weight', (hidden, width), turned)
    leaves['mlp.b_in'] = Leaf(f'{in_}.bias', (hidden,), same)
    leaves['mlp.w_out'] = Leaf(f'{down}.weight', (width, hidden), turned)
    leaves['mlp.b_out'] = Leaf(f'{down}.bias', (width,), same)
    return leaves
