"""Tasks on boards and fields of cells."""

from posenc_jax.lab.tasks.grid.markov_field import MarkovField as MarkovField
from posenc_jax.lab.tasks.grid.minesweeper import Minesweeper as Minesweeper
