"""Door 4: what is added to, or done with, the logits."""

from posenc_jax.bias import (
    alibi,
    alibi_symmetric,
    bam,
    cable,
    cope,
    fire,
    kerple,
    nope,
    nope_temperature,
    path,
    randomized_alibi,
    randomized_transformer_xl,
    rcmha,
    rope_alibi_harmonic,
    rpe_convergent,
    sandwich,
    ssmax,
    t5_rpe,
    tra,
    transformer_xl,
)
