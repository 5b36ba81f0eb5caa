"""Context extensions, functions from encoding to encoding; and what makes another model of a model
(TULIP, Pos2Distill).
"""

from posenc_jax.extension import (
    alibi_pi,
    dca,
    gali,
    hirope,
    lm_infinite,
    ms_poe,
    pos2distill,
    self_extend,
    string,
    tulip,
)
from posenc_jax.extension.extend import extend, extended_spec
