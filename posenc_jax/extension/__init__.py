"""Context extensions: functions from encoding to encoding, or (`tulip`) from model to model."""

from posenc_jax.extension import dca, hirope, lm_infinite, ms_poe, tulip
from posenc_jax.extension.extend import extend
