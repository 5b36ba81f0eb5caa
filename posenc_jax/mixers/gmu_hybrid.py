"""Decoder-hybrid-decoder: scans and windows below one shared attention layer, gated memories above.

Three quantities flow beside the residual stream, in a `Memory`: the result of the last scan, and
the keys and values of the one full-attention layer.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from posenc_jax.base.products import linear
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.language.make import make
from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer import cache as caching
from posenc_jax.layer.cache import LayerCache
from posenc_jax.layer.mixer import AttentionMixer
from posenc_jax.layer.projections import Projections
from posenc_jax.layer.recurrent_mixer import MixerState, RecurrentMixer
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.layer.sharding import constrain
from posenc_jax.layer.stream import NoState, StreamingMixer
from posenc_jax.mixers.cheems import Cheems
from posenc_jax.mixers.head_projections import from_heads, input_weights, output_weights, to_heads
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tokens import Tokens

READS = {'cross': 'keys', 'gmu': 'scan'}  # what must stand below a part


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Memory:
    """What the layers above read. It is float32 where whole sequences are read, which holds every
    number of a narrower dtype; a decode step has the cache of the shared layer as it is.

    Attributes:
      m: result of the last scan layer before its gate and projection, for the same tokens as x.
      k, v: keys and values of the shared layer for all tokens so far.
    """

    m: Float[Array, '#B L N H']
    k: Float[Array, '#B K S H']
    v: Float[Array, '#B K S H']


def gated_memory(
    x: Float[Array, 'B T D'],
    m: Float[Array, 'B T M'],
    w_gate: Float[Array, 'D M'],
    w_out: Float[Array, 'M D'],
) -> Float[Array, 'B T D']:
    """The gated memory unit `(m * silu(x w_gate)) w_out`, token by token, in the dtype of `x`."""
    return linear(m.astype(x.dtype) * jax.nn.silu(linear(x, w_gate)), w_out)


def pattern_of(
    layers: int, scan: str = 'cheems(rotate=False)', window: int = 64
) -> tuple[str, ...]:
    """The `pattern` of a model of `layers` layers, one entry for each.

    In the first half scans and attention in a sliding window alternate, and its last layer is the
    shared one. In the second half cross-attention and gated memory units alternate. No layer has
    positions.

    Args:
      layers: an even number, at least 4.
      scan: spec of the scans, a mixer that has `read` and `output`, such as `cheems`.
      window: tokens that a window sees, with the query; at least 1.

    Raises:
      SpecError: another number of layers; a spec or a window that is not accepted.
    """
    if layers < 4 or layers % 2:
        nearest = max(4, layers + layers % 2)
        raise SpecError(f'layers must be even and at least 4, got {layers}; nearest: {nearest}')
    half = layers // 2
    lower = [scan if n % 2 == 0 else f'window(size={window}) | nope()' for n in range(half - 1)]
    lower[(half - 2) // 2 * 2] = f"gmu_hybrid(part='scan', scan={scan})"
    upper = [f"gmu_hybrid(part='{('cross', 'gmu')[n % 2]}')" for n in range(half)]
    pattern = (*lower, "gmu_hybrid(part='keys')", *upper)
    for spec in pattern:
        parse_layer(spec)
    return pattern


@register(
    'gmu_hybrid',
    kind='mixer',
    card=Card(
        name='GMU hybrid',
        example="gmu_hybrid(part='scan')",
        use_when=(
            'You look things up in texts longer than in training and want a decoder that '
            'is fast for long outputs.'
        ),
        causal_only=True,
        promises=Promises(relative=True, sweep_free=False, needs_training=True),
    ),
)
class GMUHybrid(StreamingMixer):
    """One layer of a decoder-hybrid-decoder; `pattern_of` gives the layers of a model.

    `GMU(x, m) = (m * silu(x W_1)) W_2` is the part 'gmu', with the m of the same token. The part
    'scan' runs a recurrent mixer and writes m, what it reads from its state; 'keys' is full causal
    attention without positions, and writes its keys K* and values V*; 'cross' attends with queries
    of its own over K* and V*. 'cross' and 'gmu' keep nothing of earlier tokens, so a prompt passes
    through them with its last token alone. One layer of a model has a cache of full length, if its
    windows are bounded while it decodes (`bounded_windows`); a plain cache gives every window the
    full length.

    Differs from the paper: the scan is `cheems` without rotation instead of Mamba, and m is taken
    before the gate of the scan as there; attention has no differential form.

    Args:
      part: 'scan', 'keys', 'cross' or 'gmu'.
      scan: the mixer of 'scan', which has `read` and `output` as `cheems` has; None is
        `cheems(rotate=False)`.

    Raises:
      ValueError: a scan without `read` and `output`, or for another part; in a model, a part whose
        memory no layer below writes.

    Reference: Ren, Chen, Xu, Kim, Atkinson, Zhan, Sun, Peng, Liu, Wang, Cheng, Gao, Chen, Shen,
    arXiv 2507.06607.

    Example:
      >>> sizes = dict(heads=2, kv_heads=2, head_dim=4, model_dim=8, layers=4, rngs=nnx.Rngs(0))
      >>> x, tok = jnp.ones((1, 5, 8)), Tokens.of(length=5)
      >>> scan, unit = GMUHybrid('scan', **sizes), GMUHybrid('gmu', **sizes)
      >>> y, memory = scan.whole(x, tok, scan.begin_stream(tok))
      >>> y, memory = unit.whole(x, tok, memory)
      >>> y.shape, memory.m.shape
      ((1, 5, 8), (1, 5, 2, 4))
    """

    def __init__(
        self,
        part: Literal['scan', 'keys', 'cross', 'gmu'],
        scan: RecurrentMixer | None = None,
        heads: int = CONTEXT,
        kv_heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        if scan is not None and part != 'scan':
            raise ValueError(f"part={part!r} has no scan; give it to part='scan'")
        sizes: dict[str, Any] = dict(
            heads=heads, head_dim=head_dim, model_dim=model_dim, layers=layers, rngs=rngs
        )
        self.part, self.sizes = part, (heads, kv_heads, head_dim)
        if part == 'scan':
            self.layer: Any = _Scan(Cheems(rotate=False, **sizes) if scan is None else scan)
        elif part == 'gmu':
            self.layer = _Unit(**sizes)
        else:
            self.layer = (_Keys if part == 'keys' else _Cross)(kv_heads=kv_heads, **sizes)

    @property
    def memoryless(self) -> bool:
        return self.part in READS

    def check_order(self, below):
        """Raises ValueError unless a layer below writes what this part reads."""
        needed = READS.get(self.part)
        parts = [mixer.part for mixer in below if isinstance(mixer, GMUHybrid)]
        if needed is not None and needed not in parts:
            raise ValueError(
                f"gmu_hybrid(part='{self.part}') reads what gmu_hybrid(part='{needed}') writes, "
                'and no layer below it in the pattern is one; pattern_of gives a whole pattern'
            )

    def begin_stream(self, tok: Tokens) -> Memory:
        """The memory below the first layer: zeros, which no layer reads."""
        heads, kv_heads, head_dim = self.sizes
        keys = jnp.zeros((1, kv_heads, tok.length, head_dim), jnp.float32)
        return Memory(jnp.zeros((1, tok.length, heads, head_dim), jnp.float32), keys, keys)

    def start(self, batch: int, tok: Tokens) -> MixerState | LayerCache | NoState:
        """The state before the first token."""
        return self.layer.start(batch, tok)

    def fill(self, x, tok, stream, capacity, count=None):
        return self.layer.fill(x, tok, stream, capacity, count)

    def step(self, x, tok, stream, state, cursor):
        return self.layer.step(x, tok, stream, state, cursor)

    def tail(self, stream: Memory, count: int) -> Memory:
        """The memory for the last `count` tokens alone."""
        return dataclasses.replace(stream, m=stream.m[:, stream.m.shape[1] - count :])


class _Scan(nnx.Module):
    """A scan that writes what it reads from its state."""

    def __init__(self, scan: RecurrentMixer):
        if not (hasattr(scan, 'read') and hasattr(scan, 'output')):
            raise ValueError(
                f'{scan.card.key} does not tell its result before the gate and the projection; use '
                'e.g. scan=cheems(rotate=False)'
            )
        self.scan = scan

    def start(self, batch, tok):
        return self.scan.start(batch, tok)

    def fill(self, x, tok, stream, capacity, count):
        tok = tok if count is None else caching.filled(tok, count)
        return self._advance(x, tok, stream, self.start(len(x), tok))

    def step(self, x, tok, stream, state, cursor):
        return self._advance(x, tok.slice(cursor, x.shape[1]), stream, state)

    def _advance(self, x, tok, stream, state):
        scan: Any = self.scan
        m, state = scan.advance(x, tok, state, scan.read)
        kept = constrain(m.astype(jnp.float32), 'batch', 'sequence', 'heads', None)
        return scan.output(x, m), dataclasses.replace(stream, m=kept), state


class _Keys(nnx.Module):
    """Full attention without positions, whose keys and values the layers above share."""

    def __init__(self, heads, kv_heads, head_dim, model_dim, layers, rngs):
        self.projections = Projections(
            model_dim, heads, kv_heads, head_dim, gain=(2 * layers) ** -0.5, rngs=rngs
        )
        self.encoding = make('nope()', causal=True)

    def attention(self, dtype: Any = jnp.float32) -> AttentionMixer:
        return AttentionMixer(self.projections, self.encoding, dtype=dtype)

    def start(self, batch, tok):
        return self.attention().start(batch, tok)

    def fill(self, x, tok, stream, capacity, count):
        y, state = self.attention(x.dtype).fill(x, tok, capacity, count)
        k, v = (a[:, :, : x.shape[1]].astype(jnp.float32) for a in (state.k, state.v))
        return y, dataclasses.replace(stream, k=k, v=v), state

    def step(self, x, tok, stream, state, cursor):
        y, state = self.attention(x.dtype).step(x, tok, state, cursor)
        return y, dataclasses.replace(stream, k=state.k, v=state.v), state


class _Cross(nnx.Module):
    """Attention with queries of its own over the shared keys and values."""

    def __init__(self, heads, kv_heads, head_dim, model_dim, layers, rngs):
        self.w_q = input_weights(rngs, model_dim, heads, head_dim)
        self.w_out = output_weights(rngs, heads, head_dim, model_dim, layers)
        self.encoding = make('nope()', causal=True)

    def start(self, batch, tok):
        return NoState()

    def fill(self, x, tok, stream, capacity, count):
        return self._attend(x, stream, tok, tok), stream, NoState()

    def step(self, x, tok, stream, state, cursor):
        new, now = tok.slice(cursor, x.shape[1]), caching.filled(tok, cursor + x.shape[1])
        return self._attend(x, stream, new, now, implementation='dense'), stream, state

    def _attend(self, x, stream, tq, tk, **options):
        q = constrain(to_heads(x, self.w_q[...]), 'batch', 'sequence', 'heads', None)
        k, v = (a.astype(x.dtype) for a in (stream.k, stream.v))
        out = sharded_attend(self.encoding, q, k, v, tq, tk, heads_first=True, **options)
        return from_heads(out, self.w_out[...])


class _Unit(nnx.Module):
    """The gated memory unit."""

    def __init__(self, heads, head_dim, model_dim, layers, rngs):
        self.w_gate = input_weights(rngs, model_dim, heads, head_dim)
        self.w_out = output_weights(rngs, heads, head_dim, model_dim, layers)

    def start(self, batch, tok):
        return NoState()

    def fill(self, x, tok, stream, capacity, count):
        return self.step(x, tok, stream, NoState(), 0)

    def step(self, x, tok, stream, state, cursor):
        w_gate, w_out = self.w_gate[...], self.w_out[...]
        flat = stream.m.reshape(*x.shape[:2], -1)
        y = gated_memory(
            x, flat, w_gate.reshape(len(w_gate), -1), w_out.reshape(-1, w_out.shape[-1])
        )
        return y, stream, state
