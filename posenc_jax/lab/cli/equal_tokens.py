"""The logits of equal tokens, which show what an encoding alone does at each distance."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float

from posenc_jax.attention.tiles import pair_logits
from posenc_jax.features.graphs import make_graph_features
from posenc_jax.language.make import make
from posenc_jax.protocol.composite import parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.tokens import Tokens


@dataclasses.dataclass(frozen=True)
class Probe:
    """The sizes of the model for which an encoding is drawn.

    Attributes:
      heads: N, query heads, and as many key heads.
      head_dim: H; token vectors have the width N H.
      train_len: trained length, in tokens.
    """

    heads: int = 8
    head_dim: int = 64
    train_len: int = 64

    @property
    def context(self) -> dict[str, int]:
        """The sizes that a spec string takes from the model."""
        width = self.heads * self.head_dim
        heads = dict(heads=self.heads, kv_heads=self.heads, head_dim=self.head_dim)
        return dict(**heads, model_dim=width, train_len=self.train_len)

    def make(self, spec: str) -> Encoding:
        """The encoding of a causal model, with newly initialised parameters."""
        return make(spec, causal=True, rngs=nnx.Rngs(0), **self.context)


def equal_token_logits(
    encoding: Encoding, length: int, probe: Probe = Probe(), *, rows: slice = slice(None)
) -> Float[np.ndarray, 'N T S']:
    """Logits between equal tokens, less the logit of the query with the key at its own position, or
    with the nearest one before it that the mask shows; NaN where the mask hides the key.

    All queries, keys and layer inputs are ones. For an encoding that is added to the token vectors,
    queries and keys are the added vectors, split into heads. Softmax does not change if a constant
    is subtracted from a row, so the differences contain all that matters. Where positions have
    components, or a grid is read, the tokens stand in the first row of a grid, unless the encoding
    has `sample_positions`, such as the nodes of a tree.

    Args:
      encoding: made with the sizes of `probe`.
      length: number of tokens, at positions 0, 1, ... (of the last component).
      probe: sizes of the model.
      rows: the queries that are computed; default: all.

    Raises:
      ValueError: the encoding has no position for some of the tokens.

    Example:
      >>> probe = Probe(heads=2, head_dim=4)
      >>> equal_token_logits(probe.make('alibi()'), 4, probe, rows=slice(3, None))[0].tolist()
      [[-0.1875, -0.125, -0.0625, 0.0]]
    """
    grid = 'reads_grid' in encoding.traits
    tok = Tokens.on_grid(1, length) if grid else Tokens.of(length=length)
    components = max(getattr(part, 'components', 1) for part in parts_of(encoding))
    if components > 1:
        row = np.pad(np.arange(length)[:, None], ((0, 0), (components - 1, 0)))
        tok = Tokens.of(positions=row[None])
    for part in parts_of(encoding):
        if sample := getattr(part, 'sample_positions', None):
            tok = Tokens.of(positions=sample(length))
    tok = encoding.place(tok)
    width = probe.heads * probe.head_dim
    x = jnp.ones((1, length, width))
    tok = _on_path(encoding, tok)
    added = encoding.embed(jnp.zeros_like(x), tok) if encoding.opens('embed') else None
    x = x if added is None else x + added
    before = jnp.pad(x, ((0, 0), (encoding.lookback, 0), (0, 0)))
    # An encoding that opens `qkv` projects inputs of its own; these projections are ones as well.
    heads = lambda a: (a.reshape(1, -1, probe.heads, probe.head_dim),) * 3
    projected = heads(x if added is None else added)
    if encoding.opens('qkv'):
        linear = lambda a: heads(jnp.ones((1, a.shape[1], width)))
        projected = encoding.qkv(before, linear, tok)
    q, k, v, tq, tk = encoding.project(*projected, tok, tok, before)
    first = lambda a: jnp.swapaxes(a, 1, 2)
    tq = jax.tree.map(lambda a: a[:, rows], tq)
    q, k = first(q[:, rows]), first(k)
    s, _, seen = pair_logits(encoding, q, k, tq, tk)
    s = np.asarray(jnp.where(seen, s, jnp.nan))[0, : probe.heads]
    own = np.arange(length)[rows]
    shown = np.isfinite(s) & (np.arange(length) <= own[:, None])
    nearest = length - 1 - shown[..., ::-1].argmax(-1)
    return s - np.take_along_axis(s, nearest[..., None], axis=-1)


def _on_path(encoding: Encoding, tok: Tokens) -> Tokens:
    """Tokens with the features of the nodes of a path, where the encoding reads a graph."""
    specs = [getattr(part, 'graph_encoder', None) for part in parts_of(encoding)]
    if specs.count(None) == len(specs):
        return tok
    path = np.eye(tok.length, k=1) + np.eye(tok.length, k=-1)
    feats = {'adjacency': path.astype(np.float32)}
    for spec in filter(None, specs):
        feats |= make_graph_features(spec).pairs(path)
    return tok.with_feats(**{name: jnp.asarray(a)[None, :, None] for name, a in feats.items()})


def by_distance(
    encoding: Encoding, length: int, probe: Probe = Probe()
) -> Float[np.ndarray, 'N L']:
    """`equal_token_logits` of the last of `length` tokens, from its own position to the first.

    Example:
      >>> by_distance(Probe(heads=2).make('alibi()'), 3, Probe(heads=2))[1].tolist()
      [0.0, -0.00390625, -0.0078125]
    """
    return equal_token_logits(encoding, length, probe, rows=slice(length - 1, length))[:, 0, ::-1]
