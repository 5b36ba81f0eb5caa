"""Returns all defaults; posenc_jax/lab/config/defaults.py says what the fields of a run mean.

The defaults are installed with the package, so that a run can be read from its directory alone.

Command: none of its own; `python train.py --config=configs/quickstart.py` is the place to start.
"""

from posenc_jax.lab.config.defaults import get_config  # noqa: F401
