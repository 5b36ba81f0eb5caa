"""The cells of the catalogue: what a Card says, as text."""

import dataclasses
import inspect
import re

from posenc_jax.protocol.bounds import CONTEXT, described, hints_of
from posenc_jax.protocol.registry import NAMED_ONLY, Card, Entry, Kind

KINDS: tuple[Kind, ...] = (
    'encoding',
    'frequencies',
    'extension',
    'coordinates',
    'graph',
    'field',
    'mixer',
    *NAMED_ONLY,
)
COLUMNS = ('key', 'name', 'door', 'equation', 'promises', 'example', 'reference')

HEADINGS = {
    'encoding': 'Encodings',
    'frequencies': 'Frequency rules, for `freqs=` of a rotary encoding',
    'extension': 'Extensions, which turn an encoding into another encoding',
    'coordinates': 'Encoders of coordinates',
    'graph': 'Encoders of graphs, and codes of their nodes and edges',
    'field': 'Fields: networks from coordinates, or their features, to values',
    'mixer': 'Mixers, which replace attention',
    'cache': 'Caches: methods that edit, join, shorten or read a decode cache',
    'conversion': 'Conversions, which turn a model into another model',
    'analysis': 'Analyses of a model or an encoding',
}


def row(card: Card) -> tuple[str, ...]:
    """The cells of a method, one for each of `COLUMNS`."""
    return (
        card.key,
        card.name,
        card.door,
        card.equation,
        promise_text(card),
        card.example,
        reference_text(card),
    )


def promise_text(card: Card) -> str:
    """The promises of a Card as words. `cached` is named only if a cache does not keep the keys as
    encoded, which is the default.

    Example:
      >>> import posenc_jax as pj
      >>> promise_text(pj.make('nope()').card)
      'relative, sweep free, blockwise, fused'
    """
    made = [
        field.name
        for field in dataclasses.fields(card.promises)
        if getattr(card.promises, field.name) is True
    ]
    made += [f'cached {card.promises.cached}'] if card.promises.cached != 'encoded' else []
    return ', '.join(name.replace('_', ' ') for name in made)


def reference_text(card: Card) -> str:
    """The reference of a method: `arXiv:2108.12409 (2022)`, or its source if there is no paper."""
    return f'arXiv:{card.arxiv} ({card.year})' if card.arxiv else f'{card.source} ({card.year})'


def reference_markdown(card: Card) -> str:
    """The reference as Markdown, with a link to the paper if there is one."""
    text = reference_text(card)
    return f'[{text}](https://arxiv.org/abs/{card.arxiv})' if card.arxiv else text


def call_with_defaults(entry: Entry) -> str:
    """The call of a spec string with the default of every argument that the model does not give;
    an argument without a default is its name alone.

    Example:
      >>> from posenc_jax.protocol.registry import lookup
      >>> call_with_defaults(lookup('pi', ('frequencies',)))
      'pi(factor)'
      >>> call_with_defaults(lookup('window', ('encoding',)))
      'window(size, aligned=False)'
    """
    shown = (
        name if p.default is p.empty else f'{name}={p.default!r}'
        for name, p in entry.parameters.items()
        if p.default is not CONTEXT
    )
    return f'{entry.key}({", ".join(shown)})'


def bounds_text(entry: Entry) -> str:
    """What the arguments of a call accept, as far as their annotations bound it.

    Example:
      >>> from posenc_jax.protocol.registry import lookup
      >>> bounds_text(lookup('window', ('encoding',)))
      'size: at least 1'
    """
    hints = hints_of(entry.build.__init__ if isinstance(entry.build, type) else entry.build)
    own = [name for name, p in entry.parameters.items() if p.default is not CONTEXT]
    return '; '.join(f'{name}: {described(hints[name])}' for name in own if name in hints)


def summary(entry: Entry) -> str:
    """The first paragraph of the docstring of a method."""
    return re.split(r'\n\s*\n', inspect.getdoc(entry.build) or '')[0]
