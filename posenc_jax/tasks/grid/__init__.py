"""Tasks on boards and fields of cells."""

from posenc_jax.tasks.grid.markov_field import MarkovField as MarkovField
from posenc_jax.tasks.grid.minesweeper import Minesweeper as Minesweeper
