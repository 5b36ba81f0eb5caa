"""The page of the pure functions, docs/functions.md, made from their signatures and docstrings."""

import inspect
import re

import posenc_jax.functional as functional
from posenc_jax.language.catalog import markdown_table

HEADER = """# Functions

`python -m posenc_jax.lab.catalogue` writes this page from the docstrings; do not edit it. It has
the functions of `posenc_jax.functional` by family and method. They take arrays and return arrays:

```python
import jax
import posenc_jax.functional as F

x = jax.random.normal(jax.random.key(0), (2, 32, 4, 64))  # queries or keys [B, L, heads, H]
positions = jax.numpy.arange(32)[None]  # [B, L], or [1, L] for all rows

turned = F.rope(x, positions)
freqs = F.yarn_frequencies(64, 10000.0, factor=4.0, train_len=8)
longer = F.rope(x, positions, freqs=freqs, scale=F.yarn_temperature(4.0))
bias = F.alibi_bias(F.alibi_slopes(4), positions, positions)  # [1, heads, queries, keys]
```

- The name of a function begins with the key of its method. Functions that several methods share
  have names of their own, such as `rotate` and `phase`.
- `KEY` alone and `KEY_turn` rotate queries and keys. `KEY_frequencies` gives radians per position.
  `KEY_bias` is added to the logits, and `KEY_logits` takes their place. `KEY_ids` gives positions.
- A bias is in float32 and is not divided by the square root of the head width.
- `help(F.alibi_bias)` has the shapes, the units and the errors. A misspelt name is an error that
  names the nearest function.
- [The last table](#without-a-function-of-their-own) has the encodings, encoders of coordinates,
  frequency rules and extensions without a function of their own. [catalog.md](catalog.md) has all
  methods.
"""

# Encodings, encoders of coordinates, frequency rules and extensions without a function, with what
# takes its place, or why there is none.
WITHOUT = {
    'alibi_symmetric': '`alibi_bias`, which penalises earlier and later keys alike',
    'dape_v2': '`dape_adjustment` with weights of three taps',
    'dense_grid': '`grid_features` at the levels of `grid_levels(..., hashed=False)`',
    'full': 'hides no key',
    'hash_grid': '`grid_features` at the levels of `grid_levels`',
    'nope': 'changes nothing',
    'per_head': 'chooses between two encodings, head by head',
    'xpos_abf': '`xpos_scale` of what `rope(x, positions, base=500000.0)` has rotated',
}


def functions_markdown() -> str:
    """The page: a table for each family, with a row for each function, and one of `WITHOUT`."""
    parts = [HEADER]
    for title, methods in functional.FAMILIES.items():
        rows = [
            (f'`{module.rpartition(".")[2]}`' if first else '', *_row(name))
            for module, names in methods.items()
            for first, name in zip((True, *[False] * 99), names.split())
        ]
        table = markdown_table(('method', 'function', 'what it returns'), rows)
        parts.append(f'## {title}\n\n{table}\n')
    table = markdown_table(
        ('method', 'in its place'), [(f'`{key}`', text) for key, text in WITHOUT.items()]
    )
    parts.append(f'## Without a function of their own\n\n{table}\n')
    return '\n'.join(parts)


def _row(name: str) -> tuple[str, str]:
    """A call with the names of the arguments, and the first sentence of the docstring."""
    function = getattr(functional, name)
    arguments = []
    for argument in inspect.signature(function).parameters.values():
        if argument.kind == argument.KEYWORD_ONLY and '*' not in arguments:
            arguments.append('*')
        stars = {argument.VAR_POSITIONAL: '*', argument.VAR_KEYWORD: '**'}.get(argument.kind, '')
        arguments.append(stars + argument.name)
    return f'`{name}({", ".join(arguments)})`', _first_sentence(inspect.getdoc(function) or '')


def _first_sentence(text: str) -> str:
    """The first sentence of a docstring as a cell of a table.

    Example:
      >>> _first_sentence('The bias `|i - j|`, e.g. of\\n0.5. It is added.')
      'The bias `\\\\|i - j\\\\|`, e.g. of 0.5.'
    """
    paragraph = ' '.join(re.split(r'\n\s*\n|\n(?=Raises:)', text)[0].split())
    found = re.match(r'(?:`[^`]*`|(?!(?<!e\.g)(?<!i\.e)(?<!\.)\. [A-Z`])[^`])*', paragraph)
    assert found is not None  # an empty match is one
    sentence = found[0] + ('.' if paragraph[found.end() : found.end() + 1] == '.' else '')
    return sentence.replace('|', '\\|')
