"""Context extensions: functions from encoding to encoding."""

from posenc_jax.extension import dca, lm_infinite
from posenc_jax.extension.extend import extend
