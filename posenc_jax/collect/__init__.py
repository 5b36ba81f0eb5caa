"""Door 6: how values are summed once the weights are known."""

from posenc_jax.collect import urpe
