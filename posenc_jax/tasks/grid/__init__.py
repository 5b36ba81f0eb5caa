"""Tasks on boards of cells."""

from posenc_jax.tasks.grid.minesweeper import Minesweeper as Minesweeper
