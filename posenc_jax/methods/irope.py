"""iRoPE: the local layers of Llama 4, and patterns of layers with and without positions."""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from posenc_jax.protocol.bounds import Size
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.errors import check_choice
from posenc_jax.protocol.families import Mask
from posenc_jax.protocol.registry import Card, register

Pattern = Literal['llama4', 'swan', 'rnope_swa', 'smollm3']
# The specs of the layers that are repeated, and the published size of a chunk or a window. Where it
# has none, its local layers see the whole text.
PATTERNS: dict[str, tuple[tuple[str, ...], int | None]] = {
    'llama4': (
        (
            *('rope(base=500000.0, layout="interleaved") | irope(size={size})',) * 3,
            'nope() | log_length(kind="llama4", step={size})',
        ),
        8192,
    ),
    'swan': (('nope()', *('rope() | window(size={size})',) * 3), 512),
    'rnope_swa': ((*('rope() | window(size={size})',) * 3, 'nope()'), 4096),
    'smollm3': (('rope()', 'rope()', 'rope()', 'nope()'), None),
}


def irope_pattern(name: Pattern, size: int | None = None) -> tuple[str, ...]:
    """The spec strings of four layers, which a model repeats as its `pattern`: three layers are
    local and rotary, and one is global and has no positions.

    Llama 4 has its global layer last, and its queries grow with the logarithm of the rank. SWAN has
    it first, RNoPE-SWA last; both have sliding windows. SmolLM3 has no local layers. For texts
    longer than trained, SWAN multiplies the logits of its global layers at inference alone:
    `model.extend('nope_temperature(slope=...)')`, with a slope fitted by perplexity.

    Args:
      name: 'llama4', 'swan', 'rnope_swa' or 'smollm3'.
      size: tokens of a chunk or a window; None for 8192, 512 and 4096. It sets two settings of
        Llama 4, which are equal there: the chunk, and the step of the factor of global layers.

    Raises:
      ValueError: an unknown name; a size below 1, or of 'smollm3', which has no windows.

    Example:
      >>> irope_pattern('swan', size=32)[:2]
      ('nope()', 'rope() | window(size=32)')
    """
    specs, usual = PATTERNS[check_choice('irope_pattern', name, tuple(PATTERNS))]
    if size is not None and (usual is None or size < 1):
        expected = 'at least 1' if usual else 'None, because it has no windows'
        raise ValueError(f'irope_pattern: size of {name} must be {expected}, got {size}')
    return tuple(spec.format(size=usual if size is None else size) for spec in specs)


def irope_unit_rms(x: Float[Array, '... H'], epsilon: float = 1e-5) -> Float[Array, '... H']:
    """`x / sqrt(mean(x^2) + epsilon)` over the last axis, in float32, with the dtype of `x`."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide * wide).mean(-1, keepdims=True) + epsilon)).astype(x.dtype)


@register(
    'irope',
    kind='encoding',
    card=Card(
        name='iRoPE',
        example='rope() | irope(size=6)',
        use_when=(
            'You want the local layers of Llama 4, which see one chunk of the text each; the '
            'measured claim is contrary.'
        ),
        share='model',
        relative=True,
    ),
)
class IRoPE(Mask):
    """Cuts a text into chunks that do not see each other, and norms queries and keys: the local
    layers of Llama 4, behind a rotary part.

    `logit_ij = q_i . k_j / (sqrt(H) rms(q_i) rms(k_j))` where `floor(i / c) = floor(j / c)`, -inf
    elsewhere, for c tokens of a chunk; `rms(x) = sqrt(mean(x^2) + 1e-5)`. Chunks begin at multiples
    of c in the document, so the first token of a chunk sees itself alone. `window(aligned=True)`
    also shows the block before.

    iRoPE is a pattern of layers and not the encoding of one: three rotary layers with this part,
    then one without positions whose queries are multiplied by `log_length('llama4')`.
    `irope_pattern('llama4')` writes these specs, and those of other models of this kind, as
    `pattern` of a model takes them. Differs from the released code: a chunk is counted in the
    document, where that takes the place in the row. The rotation and the norm may stand in any
    order, since a norm without weights does not change under rotation. But it undoes all factors on
    queries and keys in front of it: the temperature of a frequency rule, and the factors of
    `log_length` or `nope_temperature`, which are written behind this part.

    Args:
      size: c, in tokens.
      qk_norm: whether queries and keys are normed; of Llama 4, Scout has it and Maverick has not.

    Reference: Meta AI, the code of Llama 4.

    Example:
      >>> import posenc_jax as pj
      >>> t = pj.Tokens.of(length=6)
      >>> pj.make('irope(size=4)', causal=True).mask(t, t)[0, 0].sum(-1).tolist()
      [1, 2, 3, 4, 1, 2]
    """

    def __init__(self, size: Size = 8192, qk_norm: bool = True):
        self.size = size

    def project(self, q, k, v, tq, tk, x=None):
        return irope_unit_rms(q), irope_unit_rms(k), v, tq, tk

    def allow(self, tq, tk):
        chunk = lambda tok: tok.rank // self.size
        return (chunk(tq)[:, :, None] == chunk(tk)[:, None, :])[:, None]

    def may_see(self, tq, tk):
        return (tk.rank_high // self.size >= tq.rank_low // self.size) & (
            tk.rank_low // self.size <= tq.rank_high // self.size
        )


class PlainIRoPE(IRoPE, where=lambda given: not given['qk_norm']):
    """The chunks alone."""

    project = Encoding.project
