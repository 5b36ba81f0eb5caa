"""Door 4: what is added to, or done with, the logits."""

from posenc_jax.bias import alibi, bam, cope, fire, kerple, nope, path, rpe_convergent, ssmax, t5_rpe
