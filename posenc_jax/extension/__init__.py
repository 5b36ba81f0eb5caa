"""Context extensions: functions that take an encoding and return one for longer texts."""

from posenc_jax.extension import (
    alibi_pi,
    dca,
    gali,
    hirope,
    lm_infinite,
    ms_poe,
    self_extend,
    string,
)
from posenc_jax.extension.extend import extend, extended_spec

__all__ = [
    'alibi_pi',
    'dca',
    'extend',
    'extended_spec',
    'gali',
    'hirope',
    'lm_infinite',
    'ms_poe',
    'self_extend',
    'string',
]
__dir__ = __all__.copy
