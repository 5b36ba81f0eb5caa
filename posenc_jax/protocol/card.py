"""The Card of a method: what its registration states, and what `register` fills in from the class,
the docstring and the bibliography.
"""

import dataclasses
import functools
import inspect
import pathlib
import re
from collections.abc import Collection
from typing import Any, Literal

from posenc_jax.protocol.errors import SpecError

Kind = Literal[
    'encoding',
    'frequencies',
    'extension',
    'task',
    'coordinates',
    'field',
    'graph',
    'mixer',
    'cache',
    'conversion',
    'analysis',
]
Cached = Literal['encoded', 'raw', 'evolving', 'none']
_FILE = pathlib.Path(__file__).parents[1] / 'papers.bib'
_ENTRY = re.compile(r'^@misc\{([a-z]+\d{4})(\w+),\n(.*?)^\}', re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r'^  (\w+) = \{(.*)\},$', re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Promises:
    """Properties of an encoding. The contract suite checks that stated properties hold and that the
    others do not.

    Attributes:
      relative: adding one constant to every position changes nothing.
      sweep_free: the order in which keys are visited does not matter (no carry along the sweep).
      blockwise: evaluation in tiles equals dense evaluation, in memory linear in the length.
      cached: the form in which a decode cache holds keys: 'encoded' (as projected and encoded),
        'raw' (encoded again at every step, because the encoding of a key depends on the current
        length), 'evolving' (rewritten by every new token), or 'none' (no cache is possible, because
        every new token moves the positions of all others).
      needs_training: it has trainable parameters.
      fused: the pair stage is a plain scaled inner product, so a fused attention kernel may serve
        it.
    """

    relative: bool = False
    sweep_free: bool = True
    blockwise: bool = True
    cached: Cached = 'encoded'
    needs_training: bool = False
    fused: bool = False


@dataclasses.dataclass(frozen=True)
class Card:
    """The catalogue entry of a method: where it comes from, where it acts, what it promises.

    `register` fills in what has another source: the paper from `papers.bib`, the equation from the
    docstring, the doors from the class. A method of somebody else's package states its paper here.

    Attributes:
      name: display name with the paper's capitals.
      example: the spec string the contract suite and the documentation use.
      use_when: in one sentence, what a user has or wants who may try the method; '' if a need of
        docs/choosing.md names the method, since the catalogue then shows the need.
      share: whether the layers of a model share one set of parameters in the paper's setting.
      causal_only: defined only where keys do not lie after queries.
      relative, needs_training: what a method promises, see `Promises`.
      promises: all promises. `register` takes those of an encoding from the two above, its doors
        and its traits; other methods state all but these two here.
      door: the doors it opens, in pipeline order, e.g. 'project' or 'embed'; 'mlp' for a method in
        the place of the feed-forward network. '' for those that the class of an encoding overrides,
        or for the one that is usual for the kind.
      equation: one line in the paper's symbols; '' for the code with which the first paragraph of
        the docstring begins that begins with code.
      title: title of the paper; '' with the four below if `papers.bib` has them.
      arxiv: arXiv identifier, or '' where there is none (then `source` says where it comes from).
      source: official repository, or another source that was followed.
      authors: for the citation, 'Su, Jianlin and Lu, Yu and ...'.
      year: of the paper.
      key: filled in by `register`.
    """

    name: str
    example: str
    use_when: str = ''
    share: Literal['model', 'layer'] = 'layer'
    causal_only: bool = False
    relative: bool = False
    needs_training: bool = False
    promises: Promises = Promises()
    door: str = ''
    equation: str = ''
    title: str = ''
    arxiv: str = ''
    source: str = ''
    authors: str = ''
    year: int = 0
    key: str = ''


@functools.cache
def papers() -> dict[str, dict[str, str]]:
    """By key of the method, the fields of its entry; `crossref` takes those of another entry."""
    found = _ENTRY.findall(_FILE.read_text(encoding='utf-8'))
    fields = {label + key: dict(_FIELD.findall(text)) for label, key, text in found}
    whole = lambda own: {**fields.get(own.get('crossref', ''), {}), **own}
    return {key: whole(fields[label + key]) for label, key, _ in found}


def of_paper(key: str) -> dict[str, str | int]:
    """What a Card says of the paper of a method: title, arxiv, authors, year and source; empty if
    the bibliography has no entry.

    Example:
      >>> of_paper('alibi')['arxiv'], of_paper('alibi')['year']
      ('2108.12409', 2022)
    """
    if not (entry := papers().get(key)):
        return {}
    plain = lambda name: re.sub(r'\\([&%$#_])', r'\1', entry.get(name, ''))
    return {
        'title': plain('title').removeprefix('{').removesuffix('}'),
        'arxiv': entry.get('eprint', ''),
        'authors': plain('author'),
        'year': int(entry['year']),
        'source': plain('note'),
    }


# The doors of the methods of a kind that are no encodings; 'none' for all other kinds.
_USUAL_DOOR = {'frequencies': 'project', 'coordinates': 'embed', 'graph': 'embed'}


def completed(card: Card, key: str, kind: Kind, build: Any) -> Card:
    """A Card with what it leaves to other sources."""
    if kind == 'extension':  # `extend` gives the encoding
        example = re.sub(r'encoding=\w+\(\)(, )?', '', card.example)
        card = dataclasses.replace(card, example=example)
    opened = getattr(build, 'opened_doors', None)
    doors = opened() if opened and kind == 'encoding' else [_USUAL_DOOR.get(kind, 'none')]
    known = {'key': key, 'door': ', '.join(doors) or 'none', 'equation': equation_of(build)}
    known |= {} if card.title else of_paper(key)
    whole = dataclasses.replace(
        card, **{name: value for name, value in known.items() if not getattr(card, name)}
    )
    stated = dataclasses.replace(
        card.promises,
        relative=card.relative or card.promises.relative,
        needs_training=card.needs_training or card.promises.needs_training,
    )
    promises = _promises(whole.door, stated, build.traits) if opened else stated
    whole = dataclasses.replace(whole, promises=promises)
    if missing := [
        name for name in ('title', 'source', 'authors', 'year') if not vars(whole)[name]
    ]:
        raise SpecError(f'register: the Card of {key!r} needs {", ".join(missing)} of its paper')
    return whole


def _promises(door: str, stated: Promises, traits: Any) -> Promises:
    """The promises of an encoding, by its doors and its traits where these are known of the class,
    and by what its Card states.
    """
    doors = set(door.split(', '))
    own = traits if isinstance(traits, frozenset) else frozenset()
    return dataclasses.replace(
        stated,
        sweep_free=stated.sweep_free and 'first_carry' not in doors,
        cached=cached_by(own | doors, stated.cached),
        fused=stated.fused or not doors & {'logits', 'mask', 'collect', 'rescale'},
    )


def cached_by(facts: Collection[str], otherwise: Cached = 'encoded') -> Cached:
    """The form in which a decode cache holds keys, by the traits and the doors of an encoding."""
    if 'moves_positions' in facts:
        return 'none'
    if 'follows_length' in facts:
        return 'raw'
    return 'evolving' if 'update_keys' in facts else otherwise


def equation_of(build: Any) -> str:
    """The code with which a paragraph of a docstring begins, the first such paragraph; '' if there
    is none. Several pieces of code are joined.

    Example:
      >>> def square(x):
      ...     '''Squares.
      ...
      ...     `y = x z`, `z = x`, for numbers.
      ...     '''
      >>> equation_of(square)
      'y = x z, z = x'
    """
    text = inspect.getdoc(build) or ''
    found = re.search(r'\n\n((?:`[^`]+`(?:[,;]| and)?\s)*`[^`]+`)', text)
    pieces = re.findall('`([^`]+)`', found[1]) if found else []
    return ', '.join(' '.join(piece.split()) for piece in pieces)
