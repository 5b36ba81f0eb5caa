"""Arithmetic on strings of digits, and formats that change how well models generalise."""

from posenc_jax.lab.tasks.arithmetic.addition import Addition as Addition
from posenc_jax.lab.tasks.arithmetic.addition import Sums as Sums
from posenc_jax.lab.tasks.arithmetic.length_gen_recipe import length_gen_recipe as length_gen_recipe
from posenc_jax.lab.tasks.arithmetic.multiplication import Multiplication as Multiplication
from posenc_jax.lab.tasks.arithmetic.random_spaces import RandomSpaces as RandomSpaces
