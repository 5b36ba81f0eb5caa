"""Chains, and which encodings exclude each other in one: a table of pairs, read once, when `chain`
makes a chain.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from posenc_jax.protocol.capabilities import SeveralInputs
from posenc_jax.protocol.composite import ChainedEncoding, Composite, name_of, parts_of
from posenc_jax.protocol.encoding import CAPABILITIES, DOORS, Encoding
from posenc_jax.protocol.errors import SpecError

EXCLUSIVE = ('qkv', 'collect', 'rescale', 'merge', 'begin_stream')


@dataclasses.dataclass(frozen=True)
class Conflict:
    """A pair of facts (see `facts`) that two parts of one chain may not have.

    Attributes:
      first, second: the facts.
      message: the fault and a remedy; {first} and {second} are the names of the two parts.
      before: whether they exclude each other only if `first` stands before `second`.
    """

    first: str
    second: str
    message: str
    before: bool = False


CONFLICTS = (
    *(
        Conflict(
            f'opens {door}',
            f'opens {door}',
            f'{{first}} and {{second}} both need the exclusive door {door!r}: nest one in the '
            'other, they cannot be chained',
        )
        for door in EXCLUSIVE
    ),
    Conflict(
        'forms_logits',
        'forms_logits',
        '{first} and {second} both need to form the logits: nest one in the other, they cannot be '
        'chained',
    ),
    Conflict(
        'rotates',
        'rotates',
        '{first} and {second} both rotate queries and keys, which would turn them twice: leave one '
        'out',
    ),
    Conflict(
        'rotates',
        'reads_unrotated',
        '{second} reads queries and keys that are not rotated yet: write {second} before {first}',
        before=True,
    ),
    Conflict(
        'reads_own_projections',
        'opens project',
        '{first} does not read what {second} makes of queries and keys: write {second} before it',
        before=True,
    ),
    Conflict(
        'reads_no_projections',
        'opens project',
        '{first} does not read what {second} makes of queries and keys: leave {second} out',
    ),
    Conflict(
        'sums_between',
        'leaves_gaps',
        '{first} sums over all keys up to the query, {second} hides some between others: they '
        'cannot be chained',
    ),
    Conflict(
        'opens ended',
        'opens logits',
        '{first} leaves out keys by a bound of its own logits, which {second} changes: leave prune '
        'out, or {second}',
    ),
    Conflict(
        'forms_weights',
        'opens logits',
        '{first} makes weights of the logits, and {second} would change these: write {second} '
        'before {first}',
        before=True,
    ),
    Conflict(
        'opens update_keys',
        'follows_length',
        '{first} rewrites cached keys and {second} needs them raw: they cannot be chained',
    ),
    Conflict(
        'opens begin_stream',
        'opens update_keys',
        '{first} carries a stream beside the values, and {second} rewrites cached keys, of which '
        'the stream is a part: they cannot be chained',
    ),
    Conflict(
        'opens begin_stream',
        'follows_length',
        '{first} reads a stream of every layer that no cache keeps, and {second} projects all '
        'cached keys again at every step: they cannot be chained',
    ),
    Conflict(
        'follows_length',
        'reads earlier rows',
        '{first} projects all cached keys again at every step, and {second} reads the '
        'layer input of tokens that are gone by then: they cannot be chained',
    ),
    Conflict(
        'has several inputs',
        'knows heads',
        '{first} gives every head several inputs of attention, and {second} has parameters per '
        'head: they cannot be chained',
    ),
    Conflict(
        'causal only',
        'sees_later',
        '{first} is defined for causal attention only, {second} lets queries see later keys',
    ),
    Conflict(
        'hides later keys',
        'shows later keys',
        '{first} hides later keys and {second} shows them: leave one out',
    ),
    Conflict(
        'mixes later tokens in',
        'hides later keys',
        '{first} mixes later tokens into earlier ones, which {second} hides: use it in an '
        'encoder, or with full()',
    ),
    Conflict(
        'looks at later keys only',
        'hides later keys',
        '{first} has heads that look at later keys only, which {second} hides: use it in an '
        'encoder, or with full() or prefix()',
    ),
)


def facts(part: Encoding) -> frozenset[str]:
    """The facts of a part that `CONFLICTS` names: traits, 'opens DOOR', and some derived ones."""
    decides, later = ('decides_causality' in part.traits), ('sees_later' in part.traits)
    derived = {
        'reads earlier rows': part.lookback > 0,
        'has several inputs': _has_several_inputs(part),
        'knows heads': _knows_heads(part),
        'causal only': hasattr(part, 'card') and part.card.causal_only,
        'mixes later tokens in': later and part.opens('embed'),
        'looks at later keys only': later and not decides and not part.opens('embed'),
        'hides later keys': decides and not later,
        'shows later keys': decides and later,
    }
    opened = {f'opens {door}' for door in (*DOORS, *CAPABILITIES) if part.opens(door)}
    return part.traits | opened | {fact for fact, holds in derived.items() if holds}


def _has_several_inputs(part: Encoding) -> bool:
    """Whether a part combines the results for several inputs of attention into one."""
    if isinstance(part, Composite):
        return any(map(_has_several_inputs, part.children))
    own: Any = type(part)
    return part.opens('merge') and own.merge is not SeveralInputs.merge


def _knows_heads(part: Encoding) -> bool:
    """Whether a part has a head axis, and so fits one number of heads."""
    variables = jax.tree.leaves(
        nnx.state(part), is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
    )
    for variable in variables:
        if not isinstance(variable, nnx.Variable):
            raise SpecError(
                f'{type(part).__name__} has a plain array {variable.dtype} {variable.shape}; write '
                'nnx.Param(array, axes=(...)) if it is trained, else pj.Constant(array, axes=(...))'
            )
    roles = {role for variable in variables for role in variable.get_metadata().get('axes') or ()}
    return bool(roles & {'heads', 'kv_heads'})


def chain(*encodings: Encoding) -> Encoding:
    """Joins encodings; nested chains are flattened and a chain of one is that encoding.

    Raises:
      SpecError: no argument, or one that is no encoding; an encoding with a plain array; two
        encodings that exclude each other (see `CONFLICTS`), which are named; an encoding that opens
        only one of `qkv` and `merge`.
    """
    for encoding in encodings:
        if not isinstance(encoding, Encoding):
            raise SpecError(
                f'chain() joins encodings, got {encoding!r}; make() builds one from a spec string'
            )
    parts = tuple(part for encoding in encodings for part in parts_of(encoding))
    if not parts:
        raise SpecError('chain() needs at least one encoding; "nope()" is the empty one')
    check(parts)
    return parts[0] if len(parts) == 1 else ChainedEncoding(parts)


def check(parts: Sequence[Encoding]) -> None:
    """Refuses a chain of parts that exclude each other.

    Raises:
      SpecError: two of them do; the message names both and a remedy.
    """
    known = [facts(part) for part in parts]
    for conflict in CONFLICTS:
        for i, first in enumerate(parts):
            for j, second in enumerate(parts) if conflict.first in known[i] else ():
                if i != j and conflict.second in known[j] and (i < j or not conflict.before):
                    names = dict(first=name_of(first), second=name_of(second))
                    raise SpecError(conflict.message.format(**names))
    for part in parts:
        if part.opens('qkv') != part.opens('merge'):
            opened, shut = ('qkv', 'merge') if part.opens('qkv') else ('merge', 'qkv')
            raise SpecError(
                f'{name_of(part)} opens the door {opened!r} and not {shut!r}: they are opened '
                'together'
            )
        assigned = part.position_range.assigns
        for table in parts:
            limit = None if table is part else table.position_range.accepts
            if limit is not None and assigned is not None and assigned > limit:
                raise SpecError(
                    f'{name_of(part)} draws positions 0 .. {assigned - 1}, {name_of(table)} has '
                    f'{limit}; use a larger table, a smaller range, or a policy for what lies '
                    'beyond the table'
                )
