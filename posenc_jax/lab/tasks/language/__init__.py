"""Language modelling: corpora, vocabularies, windows, packing."""

from posenc_jax.lab.tasks.language.ast_flatten import FlatTrees as FlatTrees
from posenc_jax.lab.tasks.language.code_text import CodeText as CodeText
from posenc_jax.lab.tasks.language.language import Language as Language
from posenc_jax.lab.tasks.language.masked_text import MaskedText as MaskedText
from posenc_jax.lab.tasks.language.selected import CreamText as CreamText
from posenc_jax.lab.tasks.language.selected import SegmentedText as SegmentedText
from posenc_jax.lab.tasks.language.tipa import Tipa as Tipa
from posenc_jax.lab.tasks.language.vocabulary import BOS as BOS
