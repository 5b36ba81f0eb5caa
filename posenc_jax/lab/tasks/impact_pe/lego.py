"""LEGO: a chain of variables, each plus or minus the one before it, and a question for one."""

import string
from collections.abc import Sequence

from posenc_jax.lab.tasks.impact_pe.family import Example, Family, Step, uniform

VARIABLES = string.ascii_lowercase
VALUES = {-1: '-1', 1: '+1'}


def lego_example(
    names: Sequence[str], values: Sequence[int], query: int, order: Sequence[int]
) -> Example:
    """The value of a variable; the scratchpad solves the chain from its beginning to there.

    Args:
      names, values: the variables in the order of the chain, and the hidden -1 or 1 of each.
      query: the index of the variable that is asked for.
      order: in which order the clauses are written.
    """
    signs = ['+' if value == before else '-' for before, value in zip(values, values[1:])]
    clauses = [f'{names[0]} = {VALUES[values[0]]}']
    clauses += [f'{name} = {s} {before}' for before, name, s in zip(names, names[1:], signs)]
    computed = ['']
    computed += [f'{s} {name} = {s} {VALUES[v]}' for s, name, v in zip(signs, names, values)]
    steps = [
        Step(
            names[number],
            computed[number],
            VALUES[values[number]],
            ', '.join(clauses[i] for i in order if i > number),
        )
        for number in range(query + 1)
    ]
    told = ', '.join(clauses[i] for i in order)
    prompt = f'If {told}. Then, what is the value of {names[query]}? '
    return Example(prompt, f'The answer is {VALUES[values[query]]}.', tuple(steps))


def draw_lego(rng, low, high, permuted=False):
    """An example with a query in the second half of the chain, for n odd behind its middle."""
    count = uniform(rng, low, high)
    names = [VARIABLES[i] for i in rng.permutation(len(VARIABLES))[:count]]
    values = rng.choice(list(VALUES), count).tolist()
    query = uniform(rng, count // 2 + count % 2, count - 1)
    return lego_example(names, values, query, rng.permutation(count) if permuted else range(count))


LEGO = {
    'lego': Family(
        f'If = , . Then what is the value of ? + - +1 -1 The answer {" ".join(VARIABLES)}',
        lambda rng, low, high, symbols: draw_lego(rng, low, high),
        lambda n: [lego_example(VARIABLES[:n], [1] * n, n - 1, range(n))],
        shortest=2,
        most=len(VARIABLES),
        parts='icor',
    )
}
