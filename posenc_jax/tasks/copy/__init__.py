"""Copying and reversing strings."""

from posenc_jax.tasks.copy.copy import Copy as Copy
from posenc_jax.tasks.copy.reverse import Reverse as Reverse
from posenc_jax.tasks.copy.selective_copy import SelectiveCopy as SelectiveCopy
