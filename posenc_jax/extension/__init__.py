"""Context extensions: functions from encoding to encoding."""

from posenc_jax.extension import dca, hirope, lm_infinite, ms_poe
from posenc_jax.extension.extend import extend, extended_spec
