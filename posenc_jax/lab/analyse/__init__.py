"""Analyses of how a model uses its positions. Some measure a model on a text, some need an encoding
alone; each has a function that draws its result.
"""

from posenc_jax.lab.analyse import (
    attention_entropy,
    causal_mask_pattern,
    collapse_and_oversquashing,
    embedding_position_bias,
    lm_eval,
    martingale_gap,
    nearby_similarity,
    nope_deep_lm,
    permutation_symmetry,
    pi_bound,
    pieces_entropy,
    positional_neurons,
    ppp_padding,
    probe_position,
    receptive_field,
    receptive_field_reports,
    rope_frequency_usage,
    rope_usage,
    shift_consistency,
    token_distance,
    variance_shrinkage,
)

__all__ = [
    'attention_entropy',
    'causal_mask_pattern',
    'collapse_and_oversquashing',
    'embedding_position_bias',
    'lm_eval',
    'martingale_gap',
    'nearby_similarity',
    'nope_deep_lm',
    'permutation_symmetry',
    'pi_bound',
    'pieces_entropy',
    'positional_neurons',
    'ppp_padding',
    'probe_position',
    'receptive_field',
    'receptive_field_reports',
    'rope_frequency_usage',
    'rope_usage',
    'shift_consistency',
    'token_distance',
    'variance_shrinkage',
]
__dir__ = __all__.copy
