"""Encodings that add to token vectors, or replace some: they open the door `embed`."""

from posenc_jax.embedding import (
    dpe,
    learnable_fourier,
    learned_absolute,
    papeft,
    pcm,
    seqpe,
    sigma_gpt,
    sinusoidal,
)
