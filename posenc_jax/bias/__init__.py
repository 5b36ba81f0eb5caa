"""Door 4: what is added to, or done with, the logits."""

from posenc_jax.bias import alibi, cable, cope, fire, kerple, nope, path, rcmha, t5_rpe, tra, transformer_xl
