"""Encodings that add to token vectors, or replace some: they open the door `embed`."""

from posenc_jax.embedding import (
    dpe,
    learnable_fourier,
    learned_absolute,
    learned_grid,
    papeft,
    pcm,
    peg,
    polyphase_anchor,
    seqpe,
    sigma_gpt,
    sincos2d,
    sinusoidal,
)

__all__ = [
    'dpe',
    'learnable_fourier',
    'learned_absolute',
    'learned_grid',
    'papeft',
    'pcm',
    'peg',
    'polyphase_anchor',
    'seqpe',
    'sigma_gpt',
    'sincos2d',
    'sinusoidal',
]
__dir__ = __all__.copy
