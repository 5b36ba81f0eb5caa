"""The registry of everything that has a key, with its Card (`protocol/card.py`).

Spec strings build the kinds `encoding`, `frequencies`, `extension`, `task`, `coordinates` (encoders
of coordinates), `graph` (encoders of the nodes of a graph), `field` (networks from coordinates to
values) and, as layers of a model, `mixer` (layers without the common attention). Three more kinds
are registered only to be listed and cited: `cache` (methods that edit or read a decode cache),
`conversion` (methods that make another model from a model) and `analysis`; so are mixers that are
no layers, and codes of graphs that need more than the graph. A key may exist once in every kind:
`yarn` is a frequency rule, and also an
extension that gives this rule to a rotary encoding.
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, get_args

from posenc_jax.protocol import bounds, index
from posenc_jax.protocol.card import Card, Kind, completed
from posenc_jax.protocol.card import Promises as Promises
from posenc_jax.protocol.errors import SpecError, near, nearest, quoted, same_letters, shortened

NAMED_ONLY = ('cache', 'conversion', 'analysis')
Built = TypeVar('Built', bound=Callable[..., Any])  # the class or function that is registered
_FEW = 20  # choices that are shown where none is near


def constructor_signature(cls: type) -> inspect.Signature:
    """The signature of `__init__` without `self`. That of the class is hidden by the metaclass of
    NNX modules, unless the class has this one as `__signature__`, which `help` and notebooks show.
    """
    signature = inspect.signature(cls.__init__)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


@dataclasses.dataclass(frozen=True)
class Entry:
    """One registered name: its kind, what to call, and its card (tasks have none)."""

    key: str
    kind: Kind
    build: Callable[..., Any]
    card: Card | None

    @property
    def is_layer(self) -> bool:
        """Whether a layer of a model can be made of it: an encoding, or a mixer that is a layer."""
        return getattr(self.build, 'spec_kind', None) in ('encoding', 'mixer')

    @property
    def in_specs(self) -> bool:
        """Whether spec strings build it; of mixers and of the kind 'graph' they build the classes
        whose `spec_kind` says so.
        """
        if self.kind == 'mixer':
            return self.is_layer
        if self.kind == 'graph':
            return getattr(self.build, 'spec_kind', None) == 'graph'
        return self.kind not in NAMED_ONLY

    @property
    def parameters(self) -> dict[str, inspect.Parameter]:
        """The arguments of a call in a spec string, in order; none if spec strings do not build
        it.
        """
        if not self.in_specs:
            return {}
        build = self.build
        read = constructor_signature(build) if isinstance(build, type) else inspect.signature(build)
        return {
            name: parameter
            for name, parameter in read.parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }


_ENTRIES: dict[tuple[Kind, str], Entry] = {}


def register(key: str, *, kind: Kind, card: Card | None = None) -> Callable[[Built], Built]:
    """Decorator that makes a class or function available to spec strings under `key`.

    A definition that is executed again, such as a cell of a notebook, has the module and the
    qualified name of the entry that exists. It replaces this entry, and one line says so. Encodings
    that were made before keep the earlier definition.

    Raises:
      ValueError: the key is taken within its kind by another definition; it is no Python name; no
        such kind; or what is registered cannot be called.
    """
    if not (isinstance(key, str) and key.isidentifier()):
        raise SpecError(f'register: the key must be a Python name like my_rope, got {quoted(key)}')
    if kind not in (kinds := get_args(Kind)):
        raise SpecError(f'register: no kind is {quoted(kind)}; {nearest(str(kind), kinds)}')

    def add(build: Any) -> Any:
        if not callable(build):
            raise SpecError(
                f'register: {kind} {key!r} must be a class or a function, got {quoted(build)}'
            )
        if not build.__module__.startswith('posenc_jax.') and index.modules().get((kind, key)):
            _load_own(kind, key)
        there = _ENTRIES.get((kind, key))
        if there is not None and _place(there.build) != _place(build):
            raise ValueError(
                f'{kind} {key!r} is registered already, by {_place(there.build)}; register '
                f'{_place(build)} under another name'
            )
        if there is not None:
            print(f'{kind} {key!r} is registered again; the new {_place(build)} replaces the old')
        if kind == 'encoding' and isinstance(build, type):
            build.registered_key = key
        build = _bounded(build, key)
        named = None if card is None else completed(card, key, kind, build)
        if named is not None:
            build.card = named
        _ENTRIES[kind, key] = Entry(key, kind, build, named)
        return build

    return add


def _bounded(build: Any, key: str) -> Any:
    """What is registered, with the bounds of its arguments checked (`protocol/bounds.py`). A class
    stays the same object.
    """
    if not isinstance(build, type):
        return bounds.checked(build, lambda _: key) if bounds.hints_of(build) else build
    if not hasattr(build.__init__, 'bounded_hints') and bounds.hints_of(build.__init__):
        build.__init__ = bounds.checked(build.__init__, lambda _: key)
    return build


def _load_own(kind: Kind, key: str) -> None:
    """Loads the module of this package that registers a key, so that another is refused."""
    try:
        index.load([(kind, key)])
    except ModuleNotFoundError as error:
        raise ValueError(
            f'{kind} {key!r} is a key of {index.modules()[kind, key]} ({error}); choose another key'
        ) from None


def _place(build: Any) -> str:
    """Where a class or function is defined: its module and its qualified name."""
    return f'{build.__module__}.{build.__qualname__}'


@contextlib.contextmanager
def restored_after_errors() -> Iterator[None]:
    """A scope whose registrations are undone if an error ends it, apart from those of methods of
    this package that were loaded meanwhile.
    """
    before = dict(_ENTRIES)
    try:
        yield
    except BaseException:
        loaded = {name: _ENTRIES[name] for name in index.modules().keys() & _ENTRIES.keys()}
        _ENTRIES.clear()
        _ENTRIES.update(loaded | before)
        raise


def entries(kind: Kind | None = None) -> list[Entry]:
    """All registered entries (of one kind), sorted by kind and key, apart from those that need an
    extra which is not installed. Imports their modules.
    """
    index.load_all(kind)
    return [entry for entry in loaded() if kind in (None, entry.kind)]


def loaded() -> list[Entry]:
    """The entries that are registered so far, sorted by kind and key. Nothing is imported."""
    return [entry for _, entry in sorted(_ENTRIES.items())]


# (kind that is expected, kind of the name) -> how the name is written instead.
_INSTEAD = {
    (
        'encoding',
        'frequencies',
    ): 'write rope(freqs={call}), or extend(encoding, {quoted}, train_len=...); '
    'in a config, extend={quoted}',
    (
        'encoding',
        'extension',
    ): 'write extend(encoding, {quoted}, train_len=...); in a config, extend={quoted}',
    ('encoding', 'mixer'): 'a mixer is a layer of a model, in its pattern',
    ('encoding', 'coordinates'): 'make_features(...) in posenc_jax.features.coordinates builds it',
    ('encoding', 'graph'): 'make_graph_features(...) in posenc_jax.features.graphs builds it',
    ('encoding', 'field'): 'make_field(...) in posenc_jax.fields builds it',
    ('extension', 'encoding'): 'an encoding is chained: encoding | {call}',
}


def lookup(key: str, kinds: tuple[Kind, ...], call: str = '') -> Entry:
    """The entry registered under `key` in the first of `kinds` that has it.

    Args:
      key: the name.
      kinds: the kinds that are looked through, in this order.
      call: the call with its arguments, for the error message.

    Raises:
      SpecError: unknown key; names the nearest ones and, if the key exists in another kind, says
        so.
    """
    for kind in kinds:
        if (kind, key) not in _ENTRIES:
            index.load([(kind, key)])
        if (kind, key) in _ENTRIES:
            return _ENTRIES[kind, key]
    wanted = ' or '.join(kinds)
    known = dict.fromkeys([*_ENTRIES, *index.modules()])
    elsewhere = [k for (k, name) in known if name == key]
    if elsewhere:
        call = shortened(call, 160) if '(' in call else f'{key}()'
        instead = ''.join(
            f'; {_INSTEAD[pair].format(call=call, quoted=quoted(call))}'
            for pair in ((kind, elsewhere[0]) for kind in kinds)
            if pair in _INSTEAD
        )
        instead = instead or f'; {_of_right_kind(key, kinds)}'
        raise SpecError(
            f'{key!r} is registered as {" and ".join(elsewhere)}, not as {wanted}{instead}'
        )
    names = [name for (k, name) in known if k in kinds]
    if not same_letters(key, names) and 'encoding' in kinds:
        names = same_letters(key, {name for _, name in known}) or names
    raise SpecError(f'unknown {wanted} {quoted(key)}; {nearest(key, names)}')


def _of_right_kind(key: str, kinds: tuple[Kind, ...]) -> str:
    """The ending of the message about a key of another kind: the choices near to it, all of few
    choices, or the nearest of many.
    """
    names = [entry.key for kind in kinds for entry in entries(kind) if entry.in_specs]
    if len(names) <= _FEW or near(key, names):
        return nearest(key, names)
    return f'the nearest {" or ".join(kinds)} is {near(key, names, cutoff=0)[0]!r}'
