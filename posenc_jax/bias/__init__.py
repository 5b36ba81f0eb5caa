"""Door 4: what is added to, or done with, the logits."""

from posenc_jax.bias import alibi, alibi_symmetric, bam, cope, fire, kerple, nope, nope_temperature, path
from posenc_jax.bias import rope_alibi_harmonic, rpe_convergent, sandwich, ssmax, t5_rpe
