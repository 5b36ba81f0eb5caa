"""`check` runs all laws on one encoding or mixer."""

import dataclasses
from collections.abc import Callable, Sequence

from flax import nnx

from posenc_jax.language import spec as spec_language
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.language.make import make
from posenc_jax.language.spec import Node
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import DOORS, Encoding
from posenc_jax.protocol.errors import SpecError, nearest
from posenc_jax.protocol.masks import Causal, Document
from posenc_jax.protocol.registry import Card, Promises
from posenc_jax.testing import forms, mixers, promises, sequences
from posenc_jax.testing.compare import BrokenLaw
from posenc_jax.testing.subject import CONTEXT, HEADS, KV_HEADS, Subject, moved

# From the cheapest to those that presuppose others.
LAWS = (
    forms.shapes,
    forms.roles,
    promises.needs_training,
    promises.determinism,
    promises.relative,
    promises.sweep_free,
    sequences.distances,
    sequences.heads,
    forms.one_tile,
    forms.tiles,
    forms.tiles_of_few_queries,
    forms.trained,
    sequences.decoding,
    sequences.causality,
    sequences.padding,
    sequences.packing,
    forms.jit,
    forms.bfloat16,
    forms.vmap,
    forms.one_trace,
    promises.fused,
    promises.blockwise,
    promises.chains,
    promises.checkpoints,
    forms.mesh,
)


@dataclasses.dataclass(frozen=True)
class Report:
    """What `check` has checked.

    Attributes:
      subject: the spec string, or the name of the encoding.
      kept: the names of the laws that hold.
      skipped: name -> why a law was not checked.
      doors: those that the encoding opens, without the masks of every model; None for a mixer.
    """

    subject: str
    kept: tuple[str, ...]
    skipped: dict[str, str]
    doors: tuple[str, ...] | None

    def __str__(self):
        opens = '' if self.doors is None else f' opens {", ".join(self.doors) or "no door"}'
        lines = [f'{self.subject}{opens}: {len(self.kept)} laws hold: {", ".join(self.kept)}']
        for why in dict.fromkeys(self.skipped.values()):
            laws = ', '.join(law for law, reason in self.skipped.items() if reason == why)
            lines.append(f'  not checked: {laws} ({why})')
        return '\n'.join(lines)


def check(
    encoding: str | Encoding,
    *,
    promises: Promises | None = None,
    gain: float = 2.0,
    laws: Sequence[str] = (),
    begun: Callable[[str], None] = lambda law: None,
) -> Report:
    """Checks that an encoding keeps the laws of attention: streaming equals dense evaluation,
    decoding with a cache equals one pass, gradients are finite, packing and padding change nothing,
    `jit`, `vmap` and bfloat16 work, and the encoding has exactly the properties that its Card
    promises. It takes half a minute on a CPU. With `laws` it checks only some of them.

    The layer that is checked is causal; its sizes are `CONTEXT`. Random numbers are added to all
    parameters, because some start at zero. A spec string of a mixer that decodes is checked by the
    laws of `posenc_jax.testing.mixers`: its steps equal a whole pass, padding and other documents
    do not leak, and more.

    Args:
      encoding: a spec string of an encoding or a mixer, or an encoding that was made with the
        sizes `CONTEXT`. Where it needs positions from a task, chain a part before it that places
        them.
      promises: what the encoding promises; None takes the promises of its Card. A chain of several
        encodings with Cards promises nothing unless they are given.
      gain: scale of the projections to queries, keys and values. Lower it if a law fails by little
        more than rounding, because the encoding enlarges the rounding error of its inputs.
      laws: names of the laws to check, see `LAWS` here and in `mixers`; () checks all.
      begun: called with the name of each law before it is checked, e.g. to show progress.

    Raises:
      BrokenLaw: a law does not hold; the message says which one, and the largest difference.
      SpecError: a wrong spec string, or no such law.
      ValueError: an encoding of other sizes, one that reads whole grids, or a mixer that does not
        decode.

    Example:
      >>> report = check('nope()')
      >>> 'decoding' in report.kept
      True
    """
    name = encoding if isinstance(encoding, str) else name_of(encoding)
    if isinstance(encoding, str) and (node := _mixer(encoding)) is not None:
        stated = None if node.entry.card is None else node.entry.card.promises
        build = lambda seed: mixers.moved(
            spec_language.build(node, {**mixers.CONTEXT, 'rngs': nnx.Rngs(seed)}), seed
        )
        subject, known = mixers.Mixed(build, promises or stated), mixers.LAWS
    else:
        subject = Subject(_maker(encoding), *_named(encoding, promises), gain=gain)
        known = LAWS
    doors = _doors(subject.encoding) if isinstance(subject, Subject) else None
    kept, skipped = [], {}
    for law in _chosen(laws, known):
        begun(law.__name__)
        try:
            reason = law(subject)
        except BrokenLaw as error:
            raise BrokenLaw(f'{name} breaks the law {law.__name__!r}: {error}') from None
        except Exception as error:
            error.add_note(f'while the law {law.__name__!r} was checked on {name}')
            raise
        if reason:
            skipped[law.__name__] = reason
        else:
            kept.append(law.__name__)
    return Report(name, tuple(kept), skipped, doors)


def _doors(encoding: Encoding) -> tuple[str, ...]:
    own = [part for part in parts_of(encoding) if not isinstance(part, Causal | Document)]
    return tuple(door for door in DOORS if any(part.opens(door) for part in own))


def _mixer(spec: str) -> Node | None:
    """The call of a mixer that a spec string is; None if it is an encoding.

    Raises:
      ValueError: a mixer that does not decode, or is a part of several layers.
    """
    (node, *more) = parse_layer(spec).nodes
    if more or node.entry.kind != 'mixer':
        return None
    if getattr(node.entry.build, 'sees_later', False) or node.entry.build.streams:
        raise ValueError(
            f'{node.entry.key} reads whole rows or the layers beside it; check() takes mixers '
            'that decode alone'
        )
    return node


def _chosen(names, laws):
    known = {law.__name__: law for law in laws}
    for name in names:
        if name not in known:
            raise SpecError(f'no law is named {name!r}; {nearest(name, known)}')
    return [law for name, law in known.items() if name in names or not names]


def _maker(given: str | Encoding):
    if not isinstance(given, (str, Encoding)):
        raise SpecError(f'check() takes a spec string or an encoding, got {type(given).__name__}')
    if isinstance(given, Encoding):
        _check_sizes(make(given))

    def build(seed: int) -> Encoding:
        context = dict(CONTEXT, rngs=nnx.Rngs(seed)) if isinstance(given, str) else {}
        return moved(make(given, causal=True, **context), seed)

    return build


def _check_sizes(encoding: Encoding) -> None:
    sizes = {'heads': HEADS, 'kv_heads': KV_HEADS}
    for _, variable in nnx.to_flat_state(nnx.state(encoding)):
        for size, role in zip(variable.shape, variable.get_metadata().get('axes') or ()):
            if size != sizes.get(role, size):
                raise ValueError(
                    f'{name_of(encoding)} was made for {size} {role}; make it with '
                    f'**posenc_jax.testing.CONTEXT, which has {sizes[role]}'
                )


def _named(encoding, promises) -> tuple[str, Promises | None]:
    """The name for the laws, and the promises of the only part that is no mask of every model, if
    it has a Card.
    """
    parts = parts_of(make(encoding, **CONTEXT) if isinstance(encoding, str) else encoding)
    if any('reads_grid' in part.traits for part in parts):
        raise ValueError(
            f'{name_of(parts[0])} reads whole grids, so that it has no causal form to check'
        )
    cards: list[Card] = [part.card for part in parts if getattr(part, 'card', None) is not None]
    whole = len(cards) == len(parts)  # a part without a Card may break what the others promise
    masks = ('causal', 'document')
    (card, *more) = [card for card in cards if card.key not in masks] or cards or [None]
    stated = card.promises if card is not None and whole and not more else None
    return ('' if card is None else card.key), promises or stated
