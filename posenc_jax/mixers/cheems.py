"""Cheems: state-space duality whose B and C are rotated by their positions."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from posenc_jax.base.phases import phase
from posenc_jax.base.products import linear
from posenc_jax.language.spec import CONTEXT
from posenc_jax.layer.layers import normal, zeros
from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.layer.sharding import constrain
from posenc_jax.methods.rope import rope_frequencies, rotate
from posenc_jax.mixers.head_projections import from_heads, input_weights, output_weights, to_heads
from posenc_jax.mixers.ssd import ssd_chunks
from posenc_jax.protocol.bounds import Positive, Size
from posenc_jax.protocol.registry import Card, Promises, register
from posenc_jax.protocol.tokens import Tokens


@register(
    'cheems',
    kind='mixer',
    card=Card(
        name='Cheems',
        example='cheems(chunk=8)',
        causal_only=True,
        promises=Promises(relative=True, sweep_free=False, needs_training=True),
    ),
)
class Cheems(RecurrentMixer):
    """A state-space layer in its dual form, with rotary positions in the place of those of queries
    and keys.

    `S_t = exp(A dt_t) S_{t-1} + B'_t (dt_t u_t)^T`, `y_t = S_t^T C'_t + D u_t` for each head, with
    N = P = head_dim, `dt_t = softplus(x_t W_dt + b_dt)`, `A = -exp(A_log)`, and `B'_t = R(t theta)
    B_t`, `C'_t = R(t theta) C_t` in the layout 'half'. In the dual form, `y_i = sum_{j<=i} <C'_i,
    B'_j> exp(sum_{j<r<=i} A dt_r) dt_j u_j + D u_i`, so positions act by their differences. The
    paper makes every eighth layer attention with `rope()` of the same base:
    `pattern=(*('cheems()',) * 7, 'rope()')`.

    Differs from the paper: B and C are those of each head, not shared by groups of heads; of the
    biases of its projections only that of dt is there. Its weights are drawn so that `<C, B>` has
    unit variance at first. The authors' code sums over the wrong axis from the second chunk on, and
    passes A = +1; here the equations hold. Like the paper's, the layer has no short convolution and
    no gate unless `gate` asks for one.

    Args:
      base: base of the frequencies theta.
      chunk: the most tokens of a chunk, see `ssd_chunks`; the result does not depend on it.
      rotate: False leaves B and C as they are, which is plain state-space duality.
      gate: multiplies y by `silu(x W_z)` before the output projection.
      dt: the step that softplus(b_dt) gives at first; None for b_dt = 0, as in the paper's code.
        Heads h = 1, 2, ... begin with a decay of exp(-h dt) a token, so a small step remembers
        longer.

    Raises:
      ValueError: a head width that is odd, a base below 1; at a call, positions of several
        components.

    Reference: Shi, Wu, He, Jiang, arXiv 2407.16958.

    Example:
      >>> layer = Cheems(heads=2, head_dim=4, model_dim=8, layers=1, rngs=nnx.Rngs(0))
      >>> x = jnp.ones((1, 5, 8))
      >>> y, state = layer.fill(x, Tokens.of(length=5), capacity=5)
      >>> y.shape, state.inner.shape
      ((1, 5, 8), (1, 2, 4, 4))
    """

    def __init__(
        self,
        base: float = 10000.0,
        chunk: Size = 256,
        rotate: bool = True,
        gate: bool = False,
        dt: Positive | None = None,
        heads: int = CONTEXT,
        head_dim: int = CONTEXT,
        model_dim: int = CONTEXT,
        layers: int = CONTEXT,
        rngs: nnx.Rngs = CONTEXT,
    ):
        rope_frequencies(head_dim, base)
        self.base, self.chunk, self.rotate = base, chunk, rotate
        self.heads, self.head_dim = heads, head_dim
        into = lambda gain: input_weights(rngs, model_dim, heads, head_dim, gain=gain)
        self.w_u, self.w_b, self.w_c = into(1.0), into(head_dim**-0.25), into(head_dim**-0.25)
        self.w_z = into(1.0) if gate else None
        self.w_dt = normal(rngs, (model_dim, heads), model_dim, ('width', 'heads'))
        self.b_dt = zeros((heads,), ('heads',))
        if dt is not None:
            self.b_dt[...] = jnp.full(heads, dt + jnp.log(-jnp.expm1(-dt)))
        self.a_log = nnx.Param(jnp.log(jnp.arange(1.0, heads + 1)), axes=('heads',))
        self.skip = nnx.Param(jnp.ones(heads), axes=('heads',))
        self.w_out = output_weights(rngs, heads, head_dim, model_dim, layers)

    def initial(self, batch: int) -> Float[Array, 'B H N P']:
        return jnp.zeros((batch, self.heads, self.head_dim, self.head_dim), jnp.float32)

    def read(
        self,
        x: Float[Array, 'B T D'],
        tok: Tokens,
        starts: Bool[Array, 'B T'],
        state: Float[Array, 'B H N P'],
    ) -> tuple[Float[Array, 'B T H P'], Float[Array, 'B H N P']]:
        """y before the gate and the output projection, and the state; arguments as for `scan`."""
        if tok.pos.ndim != 2:
            raise ValueError(
                f'cheems takes one position per token, got {tok.pos.shape[2]} components'
            )
        u, b, c = (self._heads(x, w) for w in (self.w_u, self.w_b, self.w_c))
        dt = jax.nn.softplus(linear(x.astype(jnp.float32), self.w_dt[...]) + self.b_dt[...])
        if tok.valid is not None:  # padding writes nothing and forgets nothing
            dt = jnp.where(tok.valid[..., None], dt, 0)
        if self.rotate:
            angles = phase(tok.pos, rope_frequencies(self.head_dim, self.base))[..., None, :]
            b, c = (rotate(a.astype(jnp.float32), angles) for a in (b, c))
        u, rate = u.astype(jnp.float32), -jnp.exp(self.a_log[...]) * dt
        y, state = ssd_chunks(dt[..., None] * u, rate, b, c, starts, state, chunk=self.chunk)
        state = constrain(state, 'batch', 'heads', None, None)
        return (y + self.skip[...][:, None] * u).astype(x.dtype), state

    def scan(self, x, tok, starts, state):
        y, state = self.read(x, tok, starts, state)
        return self.output(x, y), state

    def output(self, x: Float[Array, 'B T D'], y: Float[Array, 'B T H P']) -> Float[Array, 'B T D']:
        """The gate, if there is one, and the output projection, of the y of `read`."""
        if self.w_z is not None:
            y = y * jax.nn.silu(self._heads(x, self.w_z))
        return from_heads(y, self.w_out[...])

    def _heads(self, x, w) -> Float[Array, 'B T H P']:
        return constrain(to_heads(x, w[...]), 'batch', 'sequence', 'heads', None)
