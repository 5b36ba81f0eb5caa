"""Language modelling on bytes: corpora, windows, packing."""

from posenc_jax.tasks.language.language import BOS as BOS
from posenc_jax.tasks.language.language import Language as Language
