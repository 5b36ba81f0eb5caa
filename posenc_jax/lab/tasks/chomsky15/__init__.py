"""The 15 tasks of the Chomsky hierarchy, which an encoder answers in one pass."""

from posenc_jax.lab.tasks.chomsky15.chomsky15 import Chomsky15 as Chomsky15
