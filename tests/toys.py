"""Small encodings that test how the model treats encodings. They are registered only while a test
uses the fixture `toys` (`tests/conftest.py`).
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from posenc_jax.base.products import heads_first, scaled_dot_product
from posenc_jax.language.spec import CONTEXT
from posenc_jax.protocol.capabilities import AuxiliaryLoss, Carries, EvolvingKeys
from posenc_jax.protocol.encoding import Constant, Encoding
from posenc_jax.protocol.registry import Card, Entry, Promises

TOYS = {}


def toy(key, **card):
    def add(build):
        promises = Promises(cached=card.pop('cached', 'encoded'))
        fields = dict.fromkeys(('title', 'arxiv', 'door', 'equation', 'source', 'authors'), '')
        build.card = Card(
            **fields, year=2020, example=f'{key}()', name=key, promises=promises, key=key, **card
        )
        TOYS[key] = Entry(key, 'encoding', build, build.card)
        return build

    return add


@toy('toy_slope', share='model')
class Slope(Encoding):
    """A learned ALiBi, one for the model."""

    def __init__(self, heads: int = CONTEXT, rngs: nnx.Rngs = CONTEXT):
        self.slope = nnx.Param(jax.random.uniform(rngs.params(), (heads,)), axes=('heads',))
        self.scale = Constant(jnp.arange(1.0, heads + 1), axes=('heads',))

    def logits(self, s, q, k, tq, tk, seen, carry):
        distance = (tq.pos[:, :, None] - tk.pos[:, None, :]).astype(jnp.float32)[:, None]
        return s - (self.slope[...] * self.scale[...])[:, None, None] * distance, carry


@toy('toy_table', share='layer')
class Table(Encoding):
    """A learned table added at the stem; asks for a copy per layer, which what acts at the stem
    never gets.
    """

    def __init__(self, rows: int = 64, model_dim: int = CONTEXT, rngs: nnx.Rngs = CONTEXT):
        self.table = nnx.Param(
            0.3 * jax.random.normal(rngs.params(), (rows, model_dim)), axes=('positions', 'width')
        )

    def embed(self, x, tok):
        return x + self.table[...][tok.pos]


@toy('toy_shift')
class Shift(Encoding):
    """Moves all positions by a random amount, by 3 under the evaluation rule."""

    def place(self, tok, *, key=None):
        shift = 3 if key is None else jax.random.randint(key, (), 0, 30)
        return dataclasses.replace(tok, pos=tok.pos + shift)


@toy('toy_gate')
class Gate(Carries):
    """Forget gates from the layer input, one a query head: bias_ij = -(g_{j+1} + ... + g_i). The
    keys' features are cached.
    """

    def __init__(self, heads: int = CONTEXT, model_dim: int = CONTEXT, rngs: nnx.Rngs = CONTEXT):
        self.w = nnx.Param(
            jax.random.normal(rngs.params(), (model_dim, heads)) * model_dim**-0.5,
            axes=('width', 'heads'),
        )

    def project(self, q, k, v, tq, tk, x=None):
        gate = jax.nn.softplus(x.astype(jnp.float32) @ self.w[...])
        return (
            q,
            k,
            v,
            tq,
            tk.with_feats(
                toy_gate=gate if tk.valid is None else jnp.where(tk.valid[..., None], gate, 0)
            ),
        )

    def first_carry(self, q, tq):
        return jnp.zeros(q.shape[:3], jnp.float32)

    def logits(self, s, q, k, tq, tk, seen, carry):
        gate = jnp.where(seen, heads_first(tk.feats['toy_gate'])[:, :, None], 0)
        after = jnp.flip(jnp.cumsum(jnp.flip(gate, -1), -1), -1) - gate + carry[..., None]
        return s - after, carry + gate.sum(-1)


@toy('toy_path', cached='evolving')
class Path(Carries, EvolvingKeys):
    """Householder products along the sequence, key by key; w is a width-3 convolution of the layer
    input, one a key head.
    """

    lookback = 2
    traits = frozenset({'forms_logits'})

    def __init__(
        self,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        shape = (3, model_dim, kv_heads, head_dim)
        self.w = nnx.Param(
            jax.random.normal(rngs.params(), shape) * model_dim**-0.5,
            axes=(None, 'width', 'kv_heads', 'head_dim'),
        )

    def project(self, q, k, v, tq, tk, x=None):
        x, length = x.astype(jnp.float32), x.shape[1] - 2
        u = sum(jnp.einsum('bld,dkh->blkh', x[:, r : r + length], self.w[...][r]) for r in range(3))
        w = u * jax.lax.rsqrt((u * u).sum(-1, keepdims=True) + 1e-6)
        return (
            q,
            k,
            v,
            tq,
            tk.with_feats(
                toy_path=w if tk.valid is None else jnp.where(tk.valid[..., None, None], w, 0)
            ),
        )

    def first_carry(self, q, tq):
        return q.astype(jnp.float32)

    def logits(self, s, q, k, tq, tk, seen, carry):
        if 'toy_path' not in tk.feats:
            return scaled_dot_product(carry, k), carry
        group = q.shape[1] // k.shape[1]
        spread = lambda a: jnp.repeat(a, group, axis=1).astype(jnp.float32)
        keys, w = spread(k), spread(heads_first(tk.feats['toy_path']))
        seen = jnp.broadcast_to(seen, (*q.shape[:3], k.shape[2]))

        def one(q, key):
            k, w, seen = key
            logit = jnp.einsum('bnth,bnh->bnt', q, k)
            moved = q - 1.5 * jnp.einsum('bnth,bnh->bnt', q, w)[..., None] * w[:, :, None]
            return jnp.where(seen[..., None], moved, q), logit

        xs = (jnp.moveaxis(keys, 2, 0), jnp.moveaxis(w, 2, 0), jnp.moveaxis(seen, 3, 0))
        carry, logits = jax.lax.scan(one, carry, xs, reverse=True)
        return jnp.moveaxis(logits, 0, -1) * q.shape[-1] ** -0.5, carry

    def update_keys(self, k, tk, new):
        w = heads_first(new.feats['toy_path'])
        return k - 1.5 * (k * w).sum(-1, keepdims=True) * w


@toy('toy_sink')
class Sink(Encoding):
    """A learned logit of each head that takes its share of the weights and gives nothing."""

    def __init__(self, heads: int = CONTEXT, rngs: nnx.Rngs = CONTEXT):
        self.sink = nnx.Param(jax.random.normal(rngs.params(), (heads,)), axes=('heads',))

    def rescale(self, out, lse, tq):
        return out * jax.nn.sigmoid(lse - self.sink[...])[..., None].astype(out.dtype)


@toy('toy_length', cached='raw')
class Length(Encoding):
    """Scales keys by their position over the current length, once that is above `train_len`."""

    traits = frozenset({'follows_length'})

    def __init__(self, train_len: int = CONTEXT):
        self.train_len = train_len

    def project(self, q, k, v, tq, tk, x=None):
        pos = tk.pos if tk.valid is None else jnp.where(tk.valid, tk.pos, -1)
        length = jnp.maximum(pos.max(-1, keepdims=True) + 1, self.train_len)
        return q, k * (1 + tk.pos / length)[..., None, None], v, tq, tk


@toy('toy_term', share='model')
class Term(AuxiliaryLoss):
    """Adds 2 to the loss."""

    def auxiliary_loss(self, x, tok, *, key):
        return jnp.float32(2.0)
