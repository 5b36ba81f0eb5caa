"""The scratchpad of `impact_pe`: which parts of a step are written, and how."""

import re

from posenc_jax.lab.tasks.impact_pe.family import Example, Step, words_of
from posenc_jax.protocol.errors import SpecError

# The letter of each part in the name of a scratchpad, the field of `Step`, and how it is written.
PARTS = {
    'i': ('input', 'in {} '),
    'c': ('computation', 'comp {} '),
    'o': ('output', 'out {} '),
    'v': ('variables', '[ {} ] '),
    'r': ('remaining', 're {} '),
}
OPENING, CLOSING, BETWEEN = 'Thinking step by step: ', '. Thus, ', ' # '
TEXT = f'{OPENING}{CLOSING}{BETWEEN}{"".join(form for _, form in PARTS.values())}'.replace('{}', '')
_NAME = re.compile('_'.join(f'{letter}([01])' for letter in PARTS))


def named(parts: str) -> str:
    """The name of a scratchpad with these parts."""
    return '_'.join(f'{letter}{int(letter in parts)}' for letter in PARTS)


def parts_of(scratchpad: str, existing: str, task: str) -> str:
    """The letters of the parts that are written, '' without a scratchpad.

    Args:
      scratchpad: 'none', 'full', or a name such as 'i1_c0_o1_v1_r1'.
      existing: the parts that the task has; `task` is its name, for messages.

    Raises:
      SpecError: not such a name, a part that the task does not have, or no part at all.
    """
    if scratchpad == 'none':
        return ''
    if not existing:
        raise SpecError(
            f"{task} has no scratchpad, got scratchpad={scratchpad!r}; use 'none', or one of "
            'addition, poly, sum, parity, sort_single, sort_multi and lego'
        )
    if scratchpad == 'full':
        return existing
    found = _NAME.fullmatch(scratchpad)
    if found is None:
        raise SpecError(
            f"scratchpad is {scratchpad!r}; expected 'none', 'full' or the parts of a step (input, "
            f'computation, output, variables, remaining input) as in {named(existing)!r}'
        )
    chosen = ''.join(letter for letter, on in zip(PARTS, found.groups()) if on == '1')
    if not chosen:
        raise SpecError(f"scratchpad {scratchpad!r} writes no part of a step; use 'none'")
    if not set(chosen) <= set(existing):
        nearest = named(''.join(letter for letter in chosen if letter in existing))
        raise SpecError(f'the steps of {task} have no variables; nearest scratchpad: {nearest!r}')
    return chosen


def written(steps: tuple[Step, ...], parts: str) -> str:
    """The text of a scratchpad. The answer follows it behind a space."""
    return f'{OPENING} {BETWEEN.join(_step(step, parts) for step in steps)} {CLOSING}'


def _step(step, parts):
    fields = (PARTS[letter] for letter in PARTS if letter in parts)
    return ''.join(form.format(getattr(step, name)) for name, form in fields)


def most_words(examples: list[Example], parts: str) -> int:
    """The most words of a scratchpad whose parts are as long as the longest of these examples."""
    total = len(words_of(OPENING + CLOSING))
    for number, steps in enumerate(zip(*(example.steps for example in examples))):
        total += len(words_of(BETWEEN)) * (number > 0)
        total += sum(max(len(words_of(_step(step, letter))) for step in steps) for letter in parts)
    return total
