"""The columns of the catalogue that a Card does not have: the family of an encoding, the cost of a
method, the verdicts of its claims, and the needs for which it is named.
"""

import collections

import posenc_jax.functional as functional
from posenc_jax.language import choosing
from posenc_jax.language.measured import claims_of
from posenc_jax.protocol.families import Bias, Embedding, Mask
from posenc_jax.protocol.registry import Entry, entries

ROTATIONS, CONTENT = 'Rotations of queries and keys', 'Logits of content and positions'
BIASES, VECTORS = 'Biases of logits by positions', 'Vectors added to tokens'
EXTENSIONS, MASKS, PLAIN = 'Extensions to longer texts', 'Masks', 'Without positions'
# The families of encodings, in the order of the page; the others are those of docs/functions.md.
FAMILIES = (*functional.FAMILIES, MASKS, PLAIN)
_BY_CLASS = {Mask: MASKS, Bias: BIASES, Embedding: VECTORS}
_BY_MODULE = {
    f'posenc_jax.{module}': family
    for family, methods in functional.FAMILIES.items()
    for module in methods
}


def family(entry: Entry) -> str:
    """The family of an encoding: that of its class, of its pure functions or of its doors, in this
    order. '' for other kinds, each of which is one family.
    """
    if entry.kind != 'encoding' or entry.card is None:
        return ''
    if any(other.key == entry.key for other in entries('extension')):
        return EXTENSIONS
    doors = entry.card.door.split(', ')
    for base, name in _BY_CLASS.items():
        if isinstance(entry.build, type) and issubclass(entry.build, base) and 'place' not in doors:
            return name
    if entry.build.__module__ in _BY_MODULE:
        return _BY_MODULE[entry.build.__module__]
    if doors == ['none']:
        return PLAIN
    return CONTENT if 'logits' in doors else ROTATIONS


def by_family(entry: Entry) -> int:
    """The place of a method's family on the page."""
    return FAMILIES.index(own) if (own := family(entry)) else 0


def measured(entry: Entry) -> str:
    """Links to the measured claims of a method, by verdict."""
    found = collections.defaultdict(list)
    for one in claims_of(entry.key):
        found[one.verdict].append(f'[{one.claim}](claims.md#{one.claim})')
    return '; '.join(f'{verdict}: {", ".join(links)}' for verdict, links in found.items())


def use_when(entry: Entry) -> str:
    """Links to the needs of docs/choosing.md for which a method is named; the sentence of its Card
    if there are none.
    """
    links = [
        f'[{need.title}](choosing.md#{need.anchor})'
        for need in choosing.all_needs()
        if any(entry.key in choosing.keys_of(pick.spec) for pick in need.picks)
    ]
    return '; '.join(links) or (entry.card.use_when if entry.card else '')


def cost(entry: Entry) -> str:
    """The time of a train step, and of decoding where it was measured."""
    step, decoding, _ = choosing.cost_cells(entry.key)
    return step.replace(' of', f', decoding {decoding}, of') if decoding else step


MORE = {'family': family, 'cost': cost, 'measured': measured, 'use when': use_when}
