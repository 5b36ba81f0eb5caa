"""Random damage to files: bytes, and values of JSON."""

import copy
import random
from typing import Any

ODD: tuple[Any, ...] = (
    0, 1, -1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, 2**64, -(2**63),
    10**30, 10**4000, 0.0, 0.5, 1.5, 1e-300, 1e300, -1e300,
    float('nan'), float('inf'), float('-inf'), True, False, None, '', 'a', '1', 'null', '\0',
    'a\nb', '\ud800', '漢字' * 50, 'x' * 300, '../x', '/etc/passwd',
    [], [0], [None], [1, [2]], {}, {'a': 1}, {'type': 'Sequence'},
)  # fmt: skip
SIZES = (
    0,
    1,
    2,
    255,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**40,
    2**60,
    2**63 - 1,
    2**63,
    2**64 - 1,
)


def odd(rng: random.Random) -> Any:
    """A value that few fields expect: now and then a long list, a long text or one that is nested
    deep.
    """
    match rng.randrange(40):
        case 0:
            return [rng.choice(ODD)] * rng.choice((10, 1000, 2000))
        case 1:
            value: Any = rng.choice(ODD)
            for _ in range(rng.choice((5, 50, 150, 400))):
                value = [value] if rng.random() < 0.5 else {'a': value}
            return value
        case 2:
            return rng.choice('ab é漢') * rng.choice((300, 5000, 200_000))
        case 3:
            return {str(i): rng.choice(ODD) for i in range(rng.choice((3, 300)))}
    return rng.choice(ODD)


def places(value: Any, inside: tuple = ()) -> list[tuple]:
    """The paths to all values within a value of JSON, long lists by their first entries."""
    found = [inside] if inside else []
    items = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value[:20])
        if isinstance(value, list)
        else ()
    )
    for name, inner in list(items)[:60]:
        found += places(inner, (*inside, name))
    return found


def changed_json(rng: random.Random, value: Any) -> Any:
    """A copy of an object in which one value is another, is missing, stands at another place, or
    one is more.
    """
    value = copy.deepcopy(value)
    found = places(value)
    if not found:
        return odd(rng)
    *outer, name = rng.choice(found)
    holder = value
    for step in outer:
        holder = holder[step]
    match rng.randrange(8):
        case 0:
            del holder[name]
        case 1 if isinstance(holder, dict):
            holder[rng.choice((f'{name}x', '', 'a' * 300, 'type', 'id', '\ud800'))] = odd(rng)
        case 2:
            other = value
            for step in rng.choice(found):
                other = (
                    other[step]
                    if isinstance(other, (dict, list))
                    and (isinstance(other, dict) or step < len(other))
                    else other
                )
            holder[name] = copy.deepcopy(other)
        case 3 if isinstance(holder[name], (int, float)) and not isinstance(holder[name], bool):
            holder[name] = holder[name] * rng.choice((-1, 2, 3, 0.5, 2**20, 2**31)) + rng.choice(
                (0, 1, -1)
            )
        case _:
            holder[name] = odd(rng)
    return value


def changed_bytes(rng: random.Random, data: bytes, near: int | None = None) -> bytes:
    """A copy of some bytes with a few that are others, missing or twice, mostly before byte
    `near`.
    """
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        size = len(found)
        at = rng.randrange(min(near, size) + 1 if near and rng.random() < 0.8 else size + 1)
        match rng.randrange(7):
            case 0:
                del found[at : at + rng.choice((1, 4, 8, 100))]
            case 1:
                found[at:at] = rng.randbytes(rng.choice((1, 4, 8)))
            case 2:
                found[at : at + 8] = rng.choice(SIZES).to_bytes(8, 'little')
            case 3:
                found[at : at + 4] = (rng.choice(SIZES) % 2**32).to_bytes(4, 'little')
            case 4:
                del found[at:]
            case _ if at < size:
                found[at] = rng.choice(
                    (0, 255, found[at] ^ 1 << rng.randrange(8), rng.randrange(256))
                )
    return bytes(found)
