"""Whether the layers of a model are a loop in its program, or stand there one after the other."""

from posenc_jax.base import targets
from posenc_jax.lab.model.config import TransformerConfig

# More layers than these stay in a loop, so that compilation does not grow with the depth.
UNROLLED_LAYERS = 8


def unrolled(cfg: TransformerConfig) -> bool:
    """Whether the program repeats the layers one after the other.

    In a loop, a CPU writes what the backward pass needs into stacks, which it fills with zeros
    first and copies out of later, and it sums gradients over the devices once a layer. In exchange,
    a loop is a shorter program and needs less memory.
    """
    short = cfg.layers <= UNROLLED_LAYERS
    return short and cfg.remat == 'none' and targets.platform() == 'cpu'
