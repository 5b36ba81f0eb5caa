"""The bibliography `papers.bib`: which paper a method comes from."""

import functools
import pathlib
import re

_FILE = pathlib.Path(__file__).parents[1] / 'papers.bib'
_ENTRY = re.compile(r'^@misc\{([a-z]+\d{4})(\w+),\n(.*?)^\}', re.MULTILINE | re.DOTALL)
_FIELD = re.compile(r'^  (\w+) = \{(.*)\},$', re.MULTILINE)


@functools.cache
def papers() -> dict[str, dict[str, str]]:
    """By key of the method, the fields of its entry; `crossref` takes those of another entry."""
    found = _ENTRY.findall(_FILE.read_text(encoding='utf-8'))
    fields = {label + key: dict(_FIELD.findall(text)) for label, key, text in found}
    whole = lambda own: {**fields.get(own.get('crossref', ''), {}), **own}
    return {key: whole(fields[label + key]) for label, key, _ in found}


def of_method(key: str) -> dict[str, str | int]:
    """What a Card says of the paper of a method: title, arxiv, authors, year and source; empty if
    the bibliography has no entry.

    Example:
      >>> of_method('alibi')['arxiv'], of_method('alibi')['year']
      ('2108.12409', 2022)
    """
    if not (entry := papers().get(key)):
        return {}
    plain = lambda name: re.sub(r'\\([&%$#_])', r'\1', entry.get(name, ''))
    return {
        'title': plain('title').removeprefix('{').removesuffix('}'),
        'arxiv': entry.get('eprint', ''),
        'authors': plain('author'),
        'year': int(entry['year']),
        'source': plain('note'),
    }
