"""Finds the one rotary encoding of a layer, for code that reads or rewrites rotated keys."""

from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.encoding import DOORS, Encoding


def single_rotary(
    user: str, encoding: Encoding, *, beside: tuple[str, ...] = ('place', 'embed', 'mask')
) -> Rotary:
    """The plain rotary encoding of a chain, if no other part acts on queries, keys or logits.

    Args:
      user: name of the caller, for the error message.
      encoding: the chain.
      beside: doors that other parts may open.

    Raises:
      ValueError: another part opens a door that is not in `beside`, or there is no rotary encoding;
        it is named.
    """
    wanted = f'{user} needs one rotary encoding in every layer, e.g. rope()'
    found, doors = [], [door for door in (*DOORS, 'qkv') if door not in beside]
    for part in parts_of(encoding):
        if isinstance(part, Rotary) and type(part).project is Rotary.project:
            found.append(part)
        elif opened := [door for door in doors if part.opens(door)]:
            raise ValueError(f'{wanted}, got {name_of(part)}, which opens {opened[0]!r}')
    if len(found) != 1:
        raise ValueError(
            f'{wanted}, got {len(found)} of them in {" | ".join(map(name_of, parts_of(encoding)))}'
        )
    return found[0]
