"""The ten tasks on which positional encodings of decoders are compared, with scratchpads."""

from posenc_jax.lab.tasks.impact_pe.impact_pe import ImpactPE as ImpactPE
