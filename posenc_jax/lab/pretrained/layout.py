"""The map from tensors of a public checkpoint to variables of a `Transformer`, and how the stored
layout is reordered. All architectures use this module, with the names in `tensor_names.py`.
"""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from posenc_jax.lab.model.config import TransformerConfig

Change = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """One variable of the model and the tensor that it comes from.

    Attributes:
      name: name of the tensor, with '{}' for the number of the layer.
      shape: shape of the tensor in the checkpoint.
      change: function from the stored layout to ours. It only selects and reorders numbers, so
        export can find its inverse by applying it to indices.
      plus, factor: the variable is `factor (plus + stored)`, in float32.
    """

    name: str
    shape: tuple[int, ...]
    change: Change
    plus: float = 0.0
    factor: float = 1.0


@dataclasses.dataclass(frozen=True)
class Architecture:
    """The architecture of a checkpoint as a `Transformer`.

    Attributes:
      cfg: the config of the `Transformer`.
      leaves: name of a variable, without the number of its block ('embedding', 'attention.w_q') ->
        its tensor.
      ignored: names of tensors that need not be read, with '{}' for the number of the layer.
    """

    cfg: TransformerConfig
    leaves: Mapping[str, Leaf]
    ignored: tuple[str, ...] = ()


def same(a: np.ndarray) -> np.ndarray:
    return a


def turned(a: np.ndarray) -> np.ndarray:
    return a.T


def leaves_of(
    cfg: TransformerConfig,
    names: Mapping[str, str],
    *,
    by_head: bool = False,
    input_first: bool = False,
    plus: float = 0.0,
) -> dict[str, Leaf]:
    """The leaves of a model, without the output and without tables of positions.

    Args:
      cfg: of the model.
      names: part of the model -> name of its tensor, see `tensor_names.py`. With 'qkv' in the place
        of 'q', 'k' and 'v', or 'gate_in' in the place of 'gate' and 'in', these are joined along
        their output axis.
      by_head: whether the rows of 'qkv' are grouped as [heads, 3, head_dim], and not as
        [3, heads, head_dim].
      input_first: whether matrices are stored with the input axis first.
      plus: what is added to the scales of norms.
    """
    width, hidden, head_dim = cfg.width, cfg.mlp_width, cfg.head_dim
    leaves = {'embedding': Leaf(f'{names["embedding"]}.weight', (cfg.vocab_size, width), same)}

    def norm(ours, name, size):
        leaves[f'{ours}.scale'] = Leaf(f'{name}.weight', (size,), same, plus=plus)
        if cfg.norm == 'layernorm':
            leaves[f'{ours}.bias'] = Leaf(f'{name}.bias', (size,), same)

    def linear(module, own, name, shape, of_weight, of_bias=same):
        read = lambda w: of_weight(w.T if input_first else w)
        stored = shape[::-1] if input_first else shape
        leaves[f'{module}.w_{own}'] = Leaf(f'{name}.weight', stored, read)
        if cfg.bias == 'all' or (cfg.bias == 'qkv' and own in heads):
            leaves[f'{module}.b_{own}'] = Leaf(f'{name}.bias', shape[:1], of_bias)

    for ours in names:
        if ours.endswith(('norm', 'norm_after')):
            norm(ours, names[ours], width)
    heads, begin = {'q': cfg.heads, 'k': cfg.kv_heads, 'v': cfg.kv_heads}, 0
    for number, (own, n) in enumerate(heads.items()):
        name, rows, cut = names.get(own), n * head_dim, same
        if 'qkv' in names:
            cut = _of_head(n, head_dim, number) if by_head else _rows(begin, begin + rows)
            begin += rows
            name, rows = names['qkv'], sum(heads.values()) * head_dim
        linear('attention', own, name, (rows, width), *_into_heads(n, head_dim, cut))
        if cfg.qk_norm != 'none' and own != 'v':
            size = head_dim if cfg.qk_norm == 'head' else n * head_dim
            norm(f'attention.{own}_norm', names[f'normed_{own}'], size)
    out_of_heads = lambda w: w.T.reshape(cfg.heads, head_dim, width)
    linear('attention', 'out', names['out'], (width, cfg.heads * head_dim), out_of_heads)
    for number, own in enumerate(('gate', 'in')):
        if 'gate_in' in names:
            half = _rows(number * hidden, (number + 1) * hidden)
            change = lambda w, half=half: half(w).T
            linear('mlp', own, names['gate_in'], (2 * hidden, width), change)
        elif own in names:
            linear('mlp', own, names[own], (hidden, width), turned)
    linear('mlp', 'out', names['down'], (width, hidden), turned)
    return leaves


def _into_heads(heads: int, head_dim: int, cut: Change) -> tuple[Change, Change]:
    """The changes of a matrix [heads * head_dim, width] to ours, [width, heads, head_dim], and of a
    bias; `cut` takes the rows of both out of those that are stored.
    """
    rows = lambda a: cut(a).reshape(heads, head_dim, *a.shape[1:])
    return lambda w: np.moveaxis(rows(w), -1, 0), rows


def _rows(begin: int, end: int) -> Change:
    return lambda a: a[begin:end]


def _of_head(heads: int, head_dim: int, part: int) -> Change:
    """The rows of query, key or value (`part` 0, 1, 2) among [heads, 3, head_dim]."""
    return lambda a: a.reshape(heads, 3, head_dim, *a.shape[1:])[:, part]


def with_output(
    config,
    cfg: TransformerConfig,
    leaves: dict[str, Leaf],
    *ignored: str,
    name: str = 'lm_head.weight',
    tied: bool = True,
) -> Architecture:
    """The architecture with its output: the embedding table if it is tied, else the tensor `name`.

    Args:
      config: the config of the checkpoint; `tie_word_embeddings` says whether the output is tied.
      cfg, leaves: as for `Architecture`, without the output.
      ignored: as for `Architecture`.
      name: name of the output tensor; it is ignored if the output is tied.
      tied: whether the output is tied where the config does not say.
    """
    said = config.get('tie_word_embeddings')
    cfg = dataclasses.replace(cfg, tie=tied if said is None else bool(said))
    if cfg.tie:
        return Architecture(cfg, leaves, (*ignored, name))
    return Architecture(
        cfg, {**leaves, 'output': Leaf(name, (cfg.vocab_size, cfg.width), turned)}, ignored
    )
