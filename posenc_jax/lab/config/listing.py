"""The list of all fields of a config, with their defaults and what they mean, for `--help`."""

import inspect
import io
import re
import textwrap
import tokenize

from posenc_jax.lab.config import defaults

WIDTH = 100


def field_help(only: tuple[str, ...] = ()) -> str:
    """The fields as options of a command line, in sections, each with its default and the comment
    that `defaults.py` has on it.

    Args:
      only: names of sections or of fields; () lists all fields.
    """
    lines = ['fields of the config, with their defaults:', '']
    shown = {*only, *(name.partition('.')[0] for name in only if '.' in name)}
    for name, value, comment in described():
        if only and name not in shown and name.partition('.')[0] not in only:
            continue
        if value is None:
            lines += ['', *_wrapped(f'{name}: {comment}' if comment else f'{name}:', '  '), '']
        else:
            lines += [f'  --config.{name}={value}', *_wrapped(comment, ' ' * 6)]
    return '\n'.join(lines)


def fields_named(word: str) -> list[str]:
    """The options of the fields whose names end with a word."""
    names = [name for name, value, _ in described() if value is not None]
    return [f'--config.{name}' for name in names if name.split('.')[-1] == word]


def described() -> list[tuple[str, str | None, str]]:
    """Name, default and comment of every field in the order of `defaults.py`; the default of a
    section is None. The comment stands in the lines before a field, behind it, or both.
    """
    source = inspect.getsource(defaults.get_config)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    behind = {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}
    found, before, sections = [], [], {'config': ''}
    for number, line in enumerate(source.splitlines(), start=1):
        comment = behind.get(number, '')
        code, text = line.removesuffix(comment).strip(), comment.lstrip('# ')
        said = ' '.join([*before, text]).strip()
        if section := re.fullmatch(r'config\.(\w+) = (\w+) = ConfigDict\(\)', code):
            name, alias = section.groups()
            sections[alias] = f'{name}.'
            found.append((name, None, said))
        elif field := re.fullmatch(r'(\w+)\.(\w+) = (.+)', code):
            owner, name, value = field.groups()
            found.append((sections[owner] + name, value, said))
        before = [*before, text] if comment and not code else []
    return found


def _wrapped(text: str, margin: str) -> list[str]:
    return textwrap.wrap(
        text, WIDTH, initial_indent=margin, subsequent_indent=margin, break_on_hyphens=False
    )
