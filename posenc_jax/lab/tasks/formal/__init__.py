"""Formal languages."""

from posenc_jax.lab.tasks.formal.counting import Counting as Counting
from posenc_jax.lab.tasks.formal.flip_flop import FlipFlop as FlipFlop
from posenc_jax.lab.tasks.formal.parity import Parity as Parity
from posenc_jax.lab.tasks.formal.scan import Scan as Scan
from posenc_jax.lab.tasks.formal.word_problem import WordProblem as WordProblem
