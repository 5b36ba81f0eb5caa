"""Rules for the frequencies of a rotary encoding: (rotary_dim, base, length) -> (inv_freq,
temperature).
"""

from posenc_jax.rotation.frequencies import (
    abf,
    dynamic_ntk,
    giraffe,
    llama3_rope,
    longrope,
    ntk_aware,
    p_rope,
    pi,
    yarn,
)

__all__ = [
    'abf',
    'dynamic_ntk',
    'giraffe',
    'llama3_rope',
    'longrope',
    'ntk_aware',
    'p_rope',
    'pi',
    'yarn',
]
__dir__ = __all__.copy
