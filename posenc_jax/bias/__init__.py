"""Door 4: what is added to, or done with, the logits."""

from posenc_jax.bias import alibi, alibi_symmetric, cope, fire, kerple, nope, nope_temperature, path, rope_alibi_harmonic, sandwich, t5_rpe
