"""Corpora that come with every Python: the reference topics of `pydoc_data`, the standard library's
source code, and generated listings.

The first two differ between Python versions, so their perplexities are comparable within one
version only.
"""

import dataclasses
import importlib
import logging
import pathlib
import platform
import sys
import sysconfig
from collections.abc import Callable

import numpy as np

from posenc_jax.lab.tasks.language.apart import without_copies
from posenc_jax.lab.tasks.language.documents import split_documents
from posenc_jax.lab.tasks.language.listings import listings
from posenc_jax.protocol.errors import check_choice

SKIPPED = ('site-packages', 'dist-packages', 'idlelib', 'lib2to3', 'pydoc_data', '__pycache__')
MENDED = ('pydoc_topics',)  # whose validation text has lines of the training text
logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class EmbeddedCorpus:
    """A corpus of this Python installation, split by document.

    Args:
      name: 'pydoc_topics' (English reference prose, about 0.5 MB), 'stdlib_code' (Python, about
        10 MB) or 'listings' (names and values that recur after up to thousands of bytes, 10 MB).

    If the installation lacks the corpus, the next one of this list takes its place, with a warning
    in the log: pydoc topics, standard library sources, synthetic Markov text. `description` names
    the corpus in use.

    The topics repeat each other. Lines of validation topics that have a part in a copy of at least
    100 bytes of another split are left out. The test topics have no such copies.
    """

    name: str

    def __post_init__(self):
        check_choice('embedded corpus', self.name, EMBEDDED)

    def _read(self) -> tuple[str, dict[str, bytes]]:
        sources = list(READERS)[list(READERS).index(EMBEDDED[self.name]) :]
        for source in sources:
            documents = READERS[source]()
            if documents:
                break
        size = sum(map(len, documents.values()))
        text = (
            f'{self.name}: {source} of Python {platform.python_version()}, {len(documents)} '
            f'documents, {size} bytes'
        )
        if source != sources[0]:
            text += (
                ' (fallback: this Python has no '
                f'{" and no ".join(sources[: sources.index(source)])})'
            )
            logger.warning('%s', text)
        return text, documents

    @property
    def description(self) -> str:
        return self._read()[0]

    def documents(self, split: str) -> list[bytes]:
        description, documents = self._read()
        logger.info('%s, split %s', description, split)
        found = split_documents(documents, split)
        if split == 'validation' and self.name in MENDED:
            others = (split_documents(documents, part) for part in ('train', 'test'))
            return without_copies(found, [text for part in others for text in part])
        return found


def pydoc_topics() -> dict[str, bytes]:
    """Topic -> text of `pydoc_data.topics`; empty if the installation lacks this module."""
    try:
        topics = importlib.import_module('pydoc_data.topics').topics
    except ImportError:
        return {}
    return {name: topics[name].encode() for name in sorted(topics)}


def stdlib_code() -> dict[str, bytes]:
    """Relative path -> source of the standard library, without tests; empty without sources.

    Only modules and packages in `sys.stdlib_module_names` are read; the names are the same on every
    platform. Files that were written when this Python was built or installed are left out:
    `_sysconfigdata_*.py`, `config-*/`, `sitecustomize.py`, and additions of a distribution.
    """
    root = pathlib.Path(sysconfig.get_paths()['stdlib'])
    names = sorted(path.relative_to(root) for path in root.rglob('*.py'))
    ours = [n for n in names if n.parts[0].removesuffix('.py') in sys.stdlib_module_names]
    kept = [
        n for n in ours if not any(part in SKIPPED or part.startswith('test') for part in n.parts)
    ]
    return {name.as_posix(): (root / name).read_bytes() for name in kept}


def markov_text() -> dict[str, bytes]:
    """200 synthetic documents, sentences of a first-order Markov chain of words.

    Each word has four successors.
    """
    rng = np.random.Generator(np.random.PCG64(0))
    letters = np.array(list('etaoinshrdlu'))
    words = [''.join(rng.choice(letters, rng.integers(2, 9))) for _ in range(400)]
    successors = rng.integers(0, len(words), (len(words), 4))
    documents = {}
    for number in range(200):
        word, sentences = int(rng.integers(len(words))), []
        for size in rng.integers(4, 16, 40):
            sentence = []
            for choice in rng.integers(0, 4, size):
                word = int(successors[word, choice])
                sentence.append(words[word])
            sentences.append(' '.join(sentence).capitalize() + '.')
        documents[f'markov/{number:03}'] = '\n'.join(sentences).encode()
    return documents


READERS: dict[str, Callable[[], dict[str, bytes]]] = {
    'pydoc_data.topics': pydoc_topics,
    'standard library sources': stdlib_code,
    'synthetic Markov text': markov_text,
    'generated listings': listings,
}
EMBEDDED = {
    'pydoc_topics': 'pydoc_data.topics',
    'stdlib_code': 'standard library sources',
    'listings': 'generated listings',
}
