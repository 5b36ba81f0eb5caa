"""Commands and functions: SCAN, and PCFG SET, functions of strings in prefix notation."""

import string

from posenc_jax.lab.tasks.formal.scan import COMMANDS, LONGEST, PRIMITIVES, TURNS, WORDS
from posenc_jax.lab.tasks.impact_pe.family import Example, Family, uniform

ACTIONS = {name: word.capitalize() for word, name in {**TURNS, **PRIMITIVES}.items()}


def _draw_scan(rng, low, high, symbols):
    words, actions = COMMANDS.draw(rng, low, high)
    return Example(f'Solve: {" ".join(words)}[SEP] ', ' '.join(ACTIONS[a] for a in actions))


def _longest_scan(n):
    most = min(n, int(COMMANDS.lengths.max()))
    return [Example(f'Solve: {"jump " * LONGEST}[SEP] ', 'Left ' * most)]


UNARY = {
    'copy': lambda x: x,
    'reverse': lambda x: x[::-1],
    'shift': lambda x: [*x[1:], x[0]],
    'echo': lambda x: [*x, x[-1]],
    'swap_first_last': lambda x: [x[-1], *x[1:-1], x[0]] if len(x) > 1 else x,
    'repeat': lambda x: [*x, *x],
}
BINARY = {
    'append': lambda x, y: [*x, *y],
    'prepend': lambda x, y: [*y, *x],
    'remove_first': lambda x, y: y,
    'remove_second': lambda x, y: x,
}
FUNCTIONS = (*UNARY, *BINARY)
SYMBOLS = tuple(f'{letter}{n}' for n in range(1, 21) for letter in string.ascii_uppercase)
STRING = 5  # most symbols of a string in a prompt
MOST = 64  # most symbols of the value of a function


class _TooLongError(Exception):
    pass


def _expression(rng, functions, symbols):
    """The words of a random expression with so many functions, and its value."""
    if functions == 0:
        drawn = [symbols[i] for i in rng.integers(0, len(symbols), uniform(rng, 1, STRING))]
        return drawn, drawn
    name = FUNCTIONS[rng.integers(len(FUNCTIONS))]
    if name in UNARY:
        words, value = _expression(rng, functions - 1, symbols)
        found, words = UNARY[name](value), [name, *words]
    else:
        left = uniform(rng, 0, functions - 1)
        first, x = _expression(rng, left, symbols)
        second, y = _expression(rng, functions - 1 - left, symbols)
        found, words = BINARY[name](x, y), [name, *first, ',', *second]
    if len(found) > MOST:
        raise _TooLongError
    return words, found


def _draw_pcfg(rng, low, high, symbols):
    count = uniform(rng, low, high)
    while True:  # until no value is too long
        try:
            words, value = _expression(rng, count, symbols)
        except _TooLongError:
            continue
        return Example(f'{" ".join(words)} [SEP] ', ' '.join(value))


def _longest_pcfg(n):
    text = ' '.join(SYMBOLS[:1] * STRING)
    return [Example(f'{f"append {text} , " * n}{text} [SEP] ', ' '.join(SYMBOLS[:1] * MOST))]


LANGUAGES = {
    'scan': Family(
        f'Solve : [SEP] {" ".join([*WORDS, *ACTIONS.values()])}', _draw_scan, _longest_scan
    ),
    'pcfg': Family(f'{" ".join(FUNCTIONS)} , [SEP]', _draw_pcfg, _longest_pcfg, SYMBOLS),
}
