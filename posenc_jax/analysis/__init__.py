"""Analyses of how a model uses its positions. Some measure a model on a text, some need an encoding
alone; each has a function that draws its result.
"""

from posenc_jax.analysis import (
    attention_entropy,
    lm_eval,
    nope_deep_lm,
    ppp_padding,
    receptive_field,
    rope_usage,
    shift_consistency,
    token_distance,
)
