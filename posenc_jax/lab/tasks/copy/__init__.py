"""Copying and reversing strings."""

from posenc_jax.lab.tasks.copy.copy import Copy as Copy
from posenc_jax.lab.tasks.copy.reverse import Reverse as Reverse
from posenc_jax.lab.tasks.copy.selective_copy import SelectiveCopy as SelectiveCopy
