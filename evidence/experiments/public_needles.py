"""Numbers that a public model finds in long texts, with and without extensions: SmolLM2-135M.

Time:      within 10 and beyond 20 to 40 minutes for each seed on one core
Groups:    within   7,168 tokens, of the 8,192 with which the model was trained: the model as it is,
                    and STRING with its default and with the released attention factor
           beyond   10,240 tokens, which STRING reaches with its default shift: the model as it is,
                    STRING, DCA, Self-Extend, GALI, YaRN and the dynamic NTK rule
Measured:  texts of `ruler_lite('niah_multiquery')`: eight numbers of seven digits, each of another
           key, lie at drawn places among repeated sentences, and the model is asked for all of
           them. A number is right if every digit is the most probable one, with the right digits
           before it. All models read the same texts; a seed is a sample of texts.
Results:   WORKDIR/results.csv has the share of right numbers and the nats of a digit, by the third
           of the text in which a number lies; the table has an interval of the share of all thirds
           (Wilson, 95 %).
"""

import argparse
import functools
import pathlib
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from rich.console import Console
from rich.table import Table

from evidence.experiments.program import Program, Row
from evidence.experiments.public_model import FILE, opened
from evidence.experiments.runs import kept
from posenc_jax.lab.evaluate.measurement import wilson
from posenc_jax.lab.model import Transformer
from posenc_jax.lab.tasks.retrieval.ruler_lite import RulerLite

NEEDLES, THIRDS = 8, 3
STRING, RELEASED = 'string()', 'string(attention_factor=1.0693147)'
# Name -> tokens of a text, texts of a seed, and the extensions.
GROUPS: dict[str, tuple[int, int, tuple[str, ...]]] = {
    'within': (7168, 4, ('', STRING, RELEASED)),
    'beyond': (
        10240,
        2,
        ('', STRING, 'dca()', 'self_extend(group=4)', 'gali()', 'yarn(factor=2.0)',
         'dynamic_ntk(factor=2.0)'),
    ),
}  # fmt: skip
Answer = tuple[float, bool, float]  # the place of a number in the text, if it is right, and nats


@functools.partial(jax.jit, static_argnums=(0, 3))
def _nats(graphdef, state, tokens, asked):
    logits = nnx.merge(graphdef, state)(tokens[:, :-1], last=asked)[0]
    targets = tokens[0, -asked:]
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
    return nats, logits.argmax(-1) == targets


def answers(model: Transformer, task: RulerLite, seed: int, count: int, length: int):
    """The numbers of `count` texts, in the order in which they are asked for."""
    batch = task.sample(np.random.default_rng(seed), count, length)
    for tokens, targets, mask in zip(batch['tokens'], batch['targets'], batch['loss_mask']):
        asked = np.flatnonzero(mask)
        text = np.append(tokens[: asked[-1] + 1], targets[asked[-1]])
        nats, right = map(np.asarray, _nats(*nnx.split(model), jnp.asarray(text)[None], len(asked)))
        digits = np.array([task.decode(targets[n : n + 1]).isdigit() for n in asked])
        written = task.decode(text)
        for place in np.split(np.arange(len(asked)), np.flatnonzero(~digits)):
            if own := [n for n in place if digits[n]]:
                number = task.decode(targets[asked][own])
                where = written.index(number) / len(written)
                yield where, bool(right[own].all()), float(nats[own].mean())


def measured(
    model: Transformer, file: str, group: str, seed: int
) -> Iterator[tuple[str, list[Answer]]]:
    """The extensions, and what the model with each of them answers."""
    length, count, extensions = GROUPS[group]
    task = RulerLite('niah_multiquery', tokenizer=file, needles=NEEDLES)
    for extension in extensions:
        own = model.extend(extension) if extension else model
        yield extension or 'none', list(answers(own, task, seed, count, length))


def rows(length: int, seed: int, found: Sequence[tuple[str, Sequence[Answer]]]):
    """The numbers of the table: of all thirds, and of each."""
    for name, given in found:
        third = np.array([min(int(place * THIRDS), THIRDS - 1) + 1 for place, *_ in given])
        right, nats = (np.array(values) for values in zip(*(own[1:] for own in given)))
        for number in range(THIRDS + 1):
            chosen = third == number if number else third > 0
            if chosen.any():
                yield f'{length} tokens, right', name, number, seed, float(right[chosen].mean())
                yield f'{length} tokens, nats', name, number, seed, float(nats[chosen].mean())


def everything(options: argparse.Namespace) -> list[Row]:
    """The rows of all groups. Prints a table with intervals."""
    public, found_rows = opened(options), []
    table = Table(title='Numbers that are right, with an interval of 95 % (Wilson)')
    for name in ('tokens', 'extension', 'numbers', 'right', 'interval'):
        table.add_column(name)
    for group in options.groups:
        length, count, extensions = GROUPS[group]
        settings = {'file': pathlib.Path(public.file).name, 'needles': NEEDLES, 'length': length}
        settings |= {'texts': count, 'extensions': extensions}
        found = {
            seed: kept(
                options.workdir / f'{group}_{seed}.json',
                settings,
                lambda group=group, seed=seed: list(
                    measured(public.model, public.file, group, seed)
                ),
            )
            for seed in options.seeds
        }
        found_rows += [row for seed, own in found.items() for row in rows(length, seed, own)]
        for number, name in enumerate(extensions):
            right = [own[1] for answered in found.values() for own in answered[number][1]]
            low, high = wilson(sum(right), len(right))
            share = f'{np.mean(right):.2f}'
            table.add_row(
                str(length), name or 'none', str(len(right)), share, f'{low:.2f} to {high:.2f}'
            )
    Console().print(table)
    return found_rows


PROGRAM = Program(
    __name__,
    __doc__,
    everything,
    choose={'groups': GROUPS},
    options=FILE,
    table={'title': 'SmolLM2', 'x': 'third (0: all)', 'value': 'value'},
)
