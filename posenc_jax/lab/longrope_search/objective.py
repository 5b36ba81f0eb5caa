"""The objective of the LongRoPE search: the mean perplexity of a model, with the factors of a
genome, on windows of validation text.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Int

from posenc_jax.base.phases import phase
from posenc_jax.lab.config.protocols import Windows
from posenc_jax.lab.evaluate.language import score_windows
from posenc_jax.lab.evaluate.scoring import scorer
from posenc_jax.lab.longrope_search.evolution import Objective
from posenc_jax.lab.longrope_search.target import Target, rotary_part
from posenc_jax.lab.model.transformer import Transformer
from posenc_jax.layer.sharding import placed
from posenc_jax.methods.rope import Rotary, rope_frequencies
from posenc_jax.protocol.encoding import Constant


class SearchedRotary(Rotary):
    """A rotary encoding whose frequencies and `start` are variables, so that one compiled program
    scores every genome.

    The frequencies are float32: their relative rounding of 6e-8 shifts an angle by at most 6e-8
    times its size, 0.06 rad at position 1e6 for the highest frequency. The result of a search is
    scored again with the exact rule.
    """

    def __init__(self, part: Rotary, temperature: float):
        super().__init__(part.base, part.layout, part.partial, None, part.head_dim)
        self.temperature = temperature
        self.inv_freq = Constant(jnp.zeros(self.rotary_dim // 2, jnp.float32))
        self.start = Constant(jnp.zeros((), jnp.int32))

    def angles(self, pos, length=None):
        plain, _ = super().angles(pos)
        early = pos < self.start[...]
        return jnp.where(early[..., None], plain, phase(pos, self.inv_freq[...])), jnp.where(
            early, 1.0, self.temperature
        )


def perplexity_of(
    score: Callable, stream: Int[np.ndarray, ' N'], windows: Windows, rows: int
) -> float:
    """The perplexity of the scored targets of each window, averaged over the windows."""
    nll, _, scored, _ = score_windows(score, stream, windows, rows)
    nats = np.where(scored, nll.astype(np.float64), 0.0).sum(axis=1) / scored.sum(axis=1)
    return float(np.exp(nats).mean())


def make_objective(
    model: Transformer,
    target: Target,
    stream: Int[np.ndarray, ' N'],
    windows: Windows,
    rows: int,
    mesh: Mesh | None = None,
) -> Objective:
    """The objective: mean perplexity of the windows with the factors of a genome. One compiled
    program serves all genomes.

    Args:
      model, target: the trained model, and what is searched.
      stream: token ids of the validation text.
      windows: the parts of the text that are scored.
      rows: how many windows are scored at a time.
      mesh: as for `scorer`.
    """
    part = rotary_part(model)
    theta = rope_frequencies(part.rotary_dim, part.base)
    temperature = dataclasses.replace(target.now, factor=target.factor).temperature
    model = nnx.clone(model)
    model.shared = nnx.List(
        [SearchedRotary(p, temperature) if isinstance(p, Rotary) else p for p in model.shared]
    )
    if mesh is not None and mesh.size > 1:  # once; then the scorer of a genome finds it in place
        graphdef, state = nnx.split(model)
        model = nnx.merge(graphdef, placed(state, mesh))

    def objective(genome):
        rule = target.rule(genome)
        for part in model.shared:
            if isinstance(part, SearchedRotary):
                part.inv_freq[...] = jnp.asarray(theta / getattr(rule, target.name), jnp.float32)
                part.start[...] = jnp.asarray(rule.start, jnp.int32)
        return perplexity_of(scorer(model, mesh), stream, windows, rows)

    return objective


def pick_documents(targets: int, length: int, documents: int) -> Windows:
    """Windows of `length` targets that do not overlap, spread evenly over a text.

    Args:
      targets: number of targets in the text, one less than its tokens.
      length: targets of a window.
      documents: number of windows.

    Raises:
      ValueError: the text is too short for so many windows, or `documents` is below 1.

    Example:
      >>> pick_documents(100, 10, 3).start.tolist()
      [0, 40, 90]
    """
    if documents < 1:
        raise ValueError(f'documents must be at least 1, got {documents}')
    whole = targets // length
    if whole < documents:
        most = f'at most {whole} documents, or ' if whole else ''
        raise ValueError(
            f'the validation split has {targets + 1} tokens, {documents} documents of {length} '
            f'need {documents * length + 1}; '
            f'use {most}a longer text'
        )
    start = np.linspace(0, whole - 1, documents).round().astype(np.int64) * length
    full = np.full(documents, length)
    return Windows(length, start, full, full)
