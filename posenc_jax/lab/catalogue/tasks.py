"""The table of tasks in the catalogue, made from their docstrings and their options."""

import inspect
import re

from posenc_jax.language.catalog import markdown_table
from posenc_jax.protocol.registry import Entry, entries

TASK_COLUMNS = ('key', 'task', 'options', 'reference')


def tasks_markdown() -> str:
    """All registered tasks as a Markdown table, by key.

    A task has no Card. The table shows the first paragraph of its docstring, its options with their
    defaults, and the first arXiv number that the docstring cites.
    """
    table = markdown_table(TASK_COLUMNS, map(_row, entries('task')))
    return f'**Tasks**\n\n{table}\n'


def _row(entry: Entry) -> tuple[str, ...]:
    text = inspect.getdoc(entry.build) or ''
    first = ' '.join(text.split('\n\n')[0].split()).replace('|', '\\|')
    options = ', '.join(f'`{_option(p)}`' for p in entry.parameters.values())
    cited = re.search(r'\b\d{4}\.\d{4,5}\b', text)
    link = f'[{cited[0]}](https://arxiv.org/abs/{cited[0]})' if cited else ''
    return f'`{entry.key}`', first, options, link


def _option(parameter: inspect.Parameter) -> str:
    """The name, and the default if there is one; of a task as the default, its class."""
    value = parameter.default
    if value is parameter.empty:
        return parameter.name
    shown = repr(value) if value is None or isinstance(value, (bool, int, float, str)) else None
    return f'{parameter.name}={shown or type(value).__name__}'
