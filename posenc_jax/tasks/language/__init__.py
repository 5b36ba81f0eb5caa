"""Language modelling: corpora, vocabularies, windows, packing."""

from posenc_jax.tasks.language.language import Language as Language
from posenc_jax.tasks.language.vocabulary import BOS as BOS
