"""Tasks on boards, fields of cells, and pictures and videos of patches."""

from posenc_jax.lab.tasks.grid.marked_patches import MarkedPatches as MarkedPatches
from posenc_jax.lab.tasks.grid.markov_field import MarkovField as MarkovField
from posenc_jax.lab.tasks.grid.minesweeper import Minesweeper as Minesweeper
from posenc_jax.lab.tasks.grid.needle_video import NeedleVideo as NeedleVideo
from posenc_jax.lab.tasks.grid.patch_questions import PatchQuestions as PatchQuestions
