"""Encodings that assign positions to tokens: they open the door `place`."""

from posenc_jax.positions import (
    bipe,
    cream,
    giraffe_random,
    gpe,
    image_shift,
    position_coupling,
    positional_description,
    randomized_pe,
    reverse_pe,
    segmented_sequences,
    uni_encoder,
    v2pe,
    xlpe,
)

__all__ = [
    'bipe',
    'cream',
    'giraffe_random',
    'gpe',
    'image_shift',
    'position_coupling',
    'positional_description',
    'randomized_pe',
    'reverse_pe',
    'segmented_sequences',
    'uni_encoder',
    'v2pe',
    'xlpe',
]
__dir__ = __all__.copy
