"""The laboratory: models, tasks, runs, training, evaluation and analyses around the library. It
needs the extra `train`.
"""

from posenc_jax.base import extras

extras.need('train')
