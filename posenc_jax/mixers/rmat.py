"""The recurrent memory-augmented transformer: attention to a segment, its chunks and a memory."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.layers import normal, zeros
from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.methods.rope import rope
from posenc_jax.mixers.head_projections import from_heads, input_weights, output_weights, to_heads
from posenc_jax.mixers.piecewise_scan import Blocks, known_rows, scan_pieces
from posenc_jax.protocol.bounds import Count, Size
from posenc_jax.protocol.registry import Card, register

PIECE = 128  # queries at a time
HIDDEN = -1e30  # a logit without weight


def gated_slots(
    means: Float[Array, 'B C D'],
    newest: Float[Array, 'B D'],
    w_gate: Float[Array, 'E D'],
    b_gate: Float[Array, 'D'],
) -> Float[Array, 'B C D']:
    """The new slots of the memory, chunk by chunk: `m = g u + (1 - g) o` with
    `g = sigmoid([u; o] W_g + b_g)`, where u is the mean of the chunk and o the newest slot so far.
    """
    of_mean, of_slot = jnp.split(w_gate, 2)

    def append(slot, chunk):
        mean, part = chunk
        gate = jax.nn.sigmoid(part + slot @ of_slot + b_gate)
        slot = gate * mean + (1 - gate) * slot
        return slot, slot

    first = lambda a: jnp.moveaxis(a, 1, 0)
    chunks = first(means), first(means @ of_mean)
    return first(jax.lax.scan(append, newest, chunks)[1])


def masked_weights(s: Float[Array, 'B N T S'], seen: Bool[Array, 'B T S']) -> Array:
    """The softmax over the keys that are seen; zero where there are none."""
    seen = seen[:, None]
    return jnp.where(seen, jax.nn.softmax(jnp.where(seen, s, HIDDEN), axis=-1), 0.0)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SegmentState:
    """What a layer remembers.

    Attributes:
      k, v: turned keys, and values, of the current segment, of G tokens.
      sums: the sum of the layer input over each chunk of the segment.
      newest: the newest slot of the memory.
      memory_k, memory_v: keys and values of the memory at the start of the segment, of S slots, the
        newest last. How many are filled follows from the rank of a token.
    """

    k: Float[Array, 'B G N H']
    v: Float[Array, 'B G N H']
    sums: Float[Array, 'B C D']
    newest: Float[Array, 'B D']
    memory_k: Float[Array, 'B S N H']
    memory_v: Float[Array, 'B S N H']


@register(
    'rmat',
    kind='mixer',
    card=Card(
        name='RMAT',
        example='rmat(segment=8, chunk=4, slots=3)',
        use_when='You have long texts in segments and want a memory of those before.',
        causal_only=True,
        relative=True,
        needs_training=True,
    ),
)
class Rmat(RecurrentMixer):
    """Three attentions with the same queries: to the segment, to its chunk, and to a memory.

    `(A_global + A_chunk + A_memory) W_o`: a document is read in segments of G tokens, in which
    positions start at 0. Within a segment queries and keys are rotated by RoPE, with the same
    angles in every head. A query attends to all earlier tokens of its segment (global), to those of
    its chunk of C tokens (local), and without rotation to the memory M at the start of its segment,
    `softmax(q (M W_k)^T / sqrt(H)) (M W_v)`, which is 0 while M is empty. After a segment, each of
    its chunks appends a slot `m = g u + (1 - g) o`, `g = sigmoid([u; o] W_g + b_g)`, where u is the
    mean of the chunk's layer inputs and o the newest slot (0 at first); of more than S slots the
    oldest are dropped. The last chunk of a segment may be shorter. Time is linear in the length, `L
    (G + S)` for each head, and so is memory; the state holds one segment, its chunk sums and the
    memory. Differs from the paper, which has no public code: sizes and the update are as described
    here. No gradient flows into the tokens of earlier segments. The gate is trained by the queries
    of the segment right after its slots were made.

    Args:
      segment: G; 0 is half the trained length, so that training crosses a boundary, behind which
        the memory is read and its gate is trained.
      chunk: C.
      slots: S.
      mix: weigh the three attentions by a trained softmax for each head instead of summing them.
      base: of the rotary frequencies.
      through: let gradients flow into earlier segments, through the whole memory.

    Raises:
      ValueError: an odd head width, a base below 1.

    Reference: Kashyap, arXiv 2507.00453.

    Example:
      >>> import posenc_jax as pj
      >>> sizes = dict(model_dim=8, heads=2, head_dim=4, layers=1, train_len=4)
      >>> mixer = Rmat(chunk=2, slots=3, **sizes, rngs=nnx.Rngs(0))
      >>> mixer.whole(jnp.ones((1, 10, 8)), pj.Tokens.of(length=10)).shape
      (1, 10, 8)
    """

    def __init__(
        self,
        segment: Count = 0,
        chunk: Size = 64,
        slots: Size = 64,
        mix: bool = False,
        base: float = 10000.0,
        through: bool = False,
        model_dim: int = CONTEXT,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        layers: int = CONTEXT,
        train_len: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        self.segment, self.slots = segment or -(-train_len // 2), slots
        self.chunk = min(chunk, self.segment)
        self.chunks = -(-self.segment // self.chunk)
        self.base, self.through = base, through
        rope(jnp.zeros((1, 1, 1, head_dim)), jnp.zeros((1, 1), jnp.int32), base)  # refuses sizes
        into = lambda: input_weights(rngs, model_dim, heads, head_dim)
        self.w_q, self.w_k, self.w_v = into(), into(), into()
        self.w_gate = normal(rngs, (2 * model_dim, model_dim), 2 * model_dim, ('gate', 'width'))
        self.b_gate = zeros((model_dim,), ('width',))
        self.shares = zeros((heads, 3), ('heads', 'parts')) if mix else None
        self.w_out = output_weights(rngs, heads, head_dim, model_dim, layers)

    def initial(self, batch):
        model_dim, heads, head_dim = self.w_q.shape
        empty = lambda *shape: jnp.zeros((batch, *shape), jnp.float32)
        rows = lambda count: empty(count, heads, head_dim)
        return SegmentState(
            rows(self.segment),
            rows(self.segment),
            empty(self.chunks, model_dim),
            empty(model_dim),
            rows(self.slots),
            rows(self.slots),
        )

    def scan(self, x, tok, starts, state):
        valid, rank, starts = known_rows(x, tok, starts)
        project = lambda w: to_heads(x, w[...]).astype(jnp.float32)
        q, k, v = project(self.w_q), project(self.w_k), project(self.w_v)
        turned = lambda a: rope(a, rank % self.segment, self.base)
        rows = q, turned(q), turned(k), v, x.astype(jnp.float32), valid, rank, starts
        out, state = scan_pieces(self._piece, state, rows, min(PIECE, self.segment))
        return from_heads(out.astype(x.dtype), self.w_out[...]), state

    def _piece(self, state: SegmentState, rows):
        """One piece of at most G tokens, which begins at most one segment of the old document."""
        q, turned, k, v, x, valid, rank, starts = rows
        at = Blocks.of(valid, rank, starts, self.segment)
        chunk = rank % self.segment // self.chunk
        here = at.valid & at.old & (at.block == at.state_block[:, None])
        after = at.valid & at.old & ~here
        sums = state.sums + self._chunk_sums(here, chunk, x)
        crossed = after.any(axis=1)
        # Without a row that begins a segment, as in most steps of decoding, there is no new memory.
        memory = state.newest, state.memory_k, state.memory_v
        renewed = jax.lax.cond(crossed.any(), self._renewed, lambda *_: memory, sums, *memory)
        out = self._attended(q, turned, k, v, state, at, chunk, (here, after), renewed)
        of_row = lambda a, like: a.reshape(-1, *[1] * (like.ndim - 1))
        chosen = [
            jnp.where(
                of_row(at.last_document > 0, old), 0.0, jnp.where(of_row(crossed, old), new, old)
            )
            for new, old in zip(renewed, memory)
        ]
        same = (at.last_document == 0) & (at.last_block == at.state_block)
        sums = jnp.where(same[:, None, None], state.sums, 0.0)
        sums = sums + self._chunk_sums(at.last, chunk, x)
        return SegmentState(at.store(state.k, k), at.store(state.v, v), sums, *chosen), out

    def _chunk_sums(self, chosen, chunk, x):
        """The sum of x over the chosen tokens of each chunk, [B, C, D]."""
        member = chosen[..., None] & (chunk[..., None] == jnp.arange(self.chunks))
        return jnp.einsum('btc,btd->bcd', member.astype(jnp.float32), x)

    def _renewed(self, sums, newest, memory_k, memory_v):
        """The newest slot, and keys and values of the memory, behind a segment with these sums."""
        count = np.minimum(
            self.chunk, self.segment - self.chunk * np.arange(self.chunks, dtype=np.float32)
        )
        means = sums / count[:, None]
        if not self.through:
            means, newest, memory_k, memory_v = jax.lax.stop_gradient(
                (means, newest, memory_k, memory_v)
            )
        slots = gated_slots(means, newest, self.w_gate[...], self.b_gate[...])
        append = lambda old, w: jnp.concatenate([old, to_heads(slots, w[...])], axis=1)
        last = lambda a: a[:, -self.slots :]
        return (slots[:, -1], last(append(memory_k, self.w_k)), last(append(memory_v, self.w_v)))

    def _attended(self, q, turned, k, v, state, at, chunk, reads, renewed):
        """The (weighted) sum of the three attentions, [B, T, N, H]."""
        scale, size = q.shape[-1] ** -0.5, self.segment
        dot = lambda q, k: scale * jnp.einsum('btnh,bsnh->bnts', q, k)
        shares = jnp.ones((q.shape[2], 3), jnp.float32)
        if self.shares is not None:
            shares = jax.nn.softmax(self.shares[...], axis=-1)
        part = lambda number: shares[:, number, None, None]
        seen = jnp.concatenate(at.sees(size), axis=-1)
        places = jnp.broadcast_to(jnp.arange(size) // self.chunk, (len(q), size))
        near = seen & (chunk[..., None] == jnp.concatenate([places, chunk], axis=1)[:, None])
        s = dot(turned, jnp.concatenate([state.k, k], axis=1))
        w = part(0) * masked_weights(s, seen) + part(1) * masked_weights(s, near)
        out = jnp.einsum('bnts,bsnh->btnh', w, jnp.concatenate([state.v, v], axis=1))
        # The tokens of the segment in the state read the memory before it, those of the next one
        # the memory behind it; a new document has none.
        filled = lambda segments: (
            jnp.arange(self.slots) >= self.slots - segments[:, None] * self.chunks
        )
        here, after = reads
        readable = jnp.concatenate(
            [
                here[..., None] & filled(at.state_block)[:, None],
                after[..., None] & filled(at.state_block + 1)[:, None],
            ],
            axis=-1,
        )
        _, new_k, new_v = renewed
        s = dot(q, jnp.concatenate([state.memory_k, new_k], axis=1))
        w = part(2) * masked_weights(s, readable)
        return out + jnp.einsum(
            'bnts,bsnh->btnh', w, jnp.concatenate([state.memory_v, new_v], axis=1)
        )
