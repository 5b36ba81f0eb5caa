"""The masks of a chain whose pair stage has masks alone, and the keys that they show. A mask may
read no more of a token than its place: its index in the sequence and its rank in the document.
"""

import dataclasses

import jax
import numpy as np
from flax import nnx

from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import Encoding
from posenc_jax.protocol.families import Mask
from posenc_jax.protocol.masks import Causal, Document, Full

PADDING = np.iinfo(np.int32).min  # the group of tokens that are not valid
_DOORS = 'logits', 'collect', 'rescale', 'fast_path'


class _PlainTokens:
    """Tokens of one text that stand at places from `start`; `asked` collects what masks read."""

    def __init__(self, start: int, length: int, asked: set[str]):
        self._places, self._asked = np.arange(start, start + length)[None], asked

    def __getattr__(self, name: str):
        if name not in ('index', 'rank'):
            raise AttributeError(name, name=name, obj=self)
        self._asked.add(name)
        return self._places


@dataclasses.dataclass(frozen=True)
class Masks:
    """The masks of a chain.

    Attributes:
      causal: whether the causal mask is one of them.
      documents: whether packed documents are masked from each other.
      others: all others.
      read_rank: whether one of the others reads the rank of a token.
    """

    causal: bool
    documents: bool
    others: tuple[Mask, ...]
    read_rank: bool

    def seen(self, queries: range, keys: range) -> np.ndarray:
        """Which keys each query sees, [T, S] booleans, of tokens at these places of one text."""
        seen = np.ones((len(queries), len(keys)), bool)
        if self.causal:
            seen &= np.asarray(keys) <= np.asarray(queries)[:, None]
        for mask in self.others:
            seen &= _allowed(mask, queries, keys, set())[0, 0]
        return seen

    def show_each_itself(self, length: int) -> bool:
        """Whether every token of a text of this length sees itself."""
        if not self.others:
            return True
        starts = range(0, length, 128)
        blocks = (range(start, min(start + 128, length)) for start in starts)
        return all(self.seen(block, block).diagonal().all() for block in blocks)


def _allowed(mask: Mask, queries: range, keys: range, asked: set[str]) -> np.ndarray:
    with jax.ensure_compile_time_eval():
        plain = [_PlainTokens(places.start, len(places), asked) for places in (queries, keys)]
        return np.asarray(mask.allow(*plain))  # type: ignore[arg-type]


def masks_of(encoding: Encoding) -> Masks | str:
    """The masks of a chain, or the reason why they are not all that acts in its pair stage."""
    parts, others, asked = parts_of(encoding), [], set()
    for part in parts:
        opened = [door for door in _DOORS if part.opens(door)]
        if opened:
            return f'{name_of(part)} opens the door {opened[0]!r}'
        if not part.opens('mask') or isinstance(part, Causal | Document | Full):
            continue
        if jax.tree.leaves(nnx.state(part)):
            return f'the mask of {name_of(part)} has variables'
        if not isinstance(part, Mask):
            return f"{name_of(part)} opens the door 'mask'"
        try:
            own = _allowed(part, range(3), range(3), asked)
        except AttributeError as error:
            if not isinstance(error.obj, _PlainTokens):
                raise
            return f'the mask of {name_of(part)} reads {error.name!r} of tokens'
        if own.shape != (1, 1, 3, 3):
            return f'the mask of {name_of(part)} differs between heads'
        others.append(part)
    has = lambda kind: any(isinstance(part, kind) for part in parts)
    return Masks(has(Causal), has(Document), tuple(others), 'rank' in asked)
