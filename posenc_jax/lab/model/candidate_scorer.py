"""A scorer of candidate responses to one context, the model of Uni-Encoder."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.methods.uni_encoder import UniEncoder, uni_encoder_means
from posenc_jax.protocol.tokens import Tokens


class CandidateScorer(nnx.Module):
    """An encoder that scores candidates. A score is a linear map of the mean of the candidate's
    rows of the last layer.

    Args:
      cfg: of kind 'encoder', with `uni_encoder` in its encoding.
      rngs: initial parameters come from `rngs.params()`.

    Raises:
      ValueError: a model of another kind, or an encoding without `uni_encoder`; in a call,
        positions that are not [B, L, 2], or fewer `candidates` than the positions have.

    Example:
      >>> sizes = dict(vocab_size=9, train_len=8, layers=1, width=16, heads=2)
      >>> cfg = TransformerConfig(encoding='uni_encoder() | rope()', kind='encoder', **sizes)
      >>> scorer = CandidateScorer(cfg, rngs=nnx.Rngs(0))
      >>> from posenc_jax.methods.uni_encoder import uni_encoder_layout
      >>> scorer(**uni_encoder_layout([[7, 8]], [[[5], [6, 6]]], cls=1, sep=2))[0].shape
      (1, 2)
    """

    def __init__(self, cfg: TransformerConfig, *, rngs: nnx.Rngs):
        if cfg.causal:
            raise ValueError(f"CandidateScorer needs a model of kind 'encoder', got {cfg.kind!r}")
        self.model = Transformer(cfg, rngs=rngs)
        if not all(
            any(isinstance(part, UniEncoder) for _, part in self.model.stem(layer_type))
            for layer_type in range(len(cfg.specs))
        ):
            raise ValueError(
                f'CandidateScorer needs uni_encoder() in every encoding, got {", ".join(cfg.specs)}'
            )
        self.kernel = nnx.Param(
            cfg.width**-0.5 * jax.random.normal(rngs.params(), (cfg.width,), jnp.float32)
        )
        self.bias = nnx.Param(jnp.zeros((), jnp.float32))

    def __call__(
        self,
        tokens: Int[Array, 'B L'],
        positions: Int[Array, 'B L 2'],
        valid: Bool[Array, 'B L'] | None = None,
        *,
        candidates: int | None = None,
    ) -> tuple[Float[Array, 'B C'], Float[Array, 'B L D']]:
        """Scores, -inf where a row has no such candidate, and the output of the last layer, which
        `model.logits` takes.

        Args:
          tokens, positions, valid: as `uni_encoder_layout` makes them.
          candidates: C, at least the number of candidates; None reads it from the positions, which
            must not be traced then.
        """
        if np.shape(positions)[2:] != (2,):
            raise ValueError(
                f'CandidateScorer needs positions [B, L, 2], id and part, got {np.shape(positions)}'
            )
        most = None if isinstance(positions, Tracer) else int(np.asarray(positions)[..., 1].max())
        candidates = most if candidates is None else candidates
        if candidates is None or candidates < max(most or 0, 1):
            found = (
                'positions that are not known'
                if most is None
                else f'{most} of them in the positions'
            )
            raise ValueError(
                f'CandidateScorer scores all candidates, at least 1, got candidates={candidates} '
                f'for {found}'
            )
        positions = jnp.asarray(positions)
        part = positions[..., 1]
        hidden = self.model.hidden(jnp.asarray(tokens), Tokens.of(positions=positions, valid=valid))
        there = (part[..., None] == jnp.arange(1, candidates + 1)).any(1)
        means = jnp.where(there[..., None], uni_encoder_means(hidden, part, candidates), 0.0)
        return jnp.where(there, means @ self.kernel[...] + self.bias[...], -jnp.inf), hidden
