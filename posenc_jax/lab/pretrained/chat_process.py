"""Renders one chat template: a script that `chat.py` runs as a process of its own, because a
template that loops for ever or fills the memory can be stopped from outside alone, also within one
expression. It imports the standard library and jinja2 alone, so that it starts at once.

Standard input has a JSON object with the template, the values that it may use and the bounds;
standard output gets one with the 'text', or with the 'problem' that stands against it.
"""

import datetime
import json
import sys
from collections.abc import Mapping
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
except ImportError:  # Windows
    resource = None


def rendered(
    template: str, values: Mapping[str, Any], seconds: int, memory: int, longest: int
) -> dict[str, str]:
    """What is written to standard output.

    Args:
      template: the text of the template.
      values: what it may use, by name.
      seconds: of processor time, after which the system ends this process.
      memory: the most bytes of address space that this process may have.
      longest: the most characters of the text.
    """
    if resource is not None:
        # Without the third one the system would write the memory of a process that it ends.
        for kind, most in (
            (resource.RLIMIT_CPU, seconds),
            (resource.RLIMIT_AS, memory),
            (resource.RLIMIT_CORE, 0),
        ):
            _, hard = resource.getrlimit(kind)
            resource.setrlimit(kind, (most if hard < 0 else min(most, hard), hard))
    step = 'cannot be read'
    try:
        # Constant expressions are evaluated while a template is compiled.
        made = _environment().from_string(template)
        step, pieces, size = 'fails', [], 0
        for piece in made.generate(**values):
            pieces.append(piece)
            if (size := size + len(piece)) > longest:
                return {'problem': f'fails: its text is longer than {longest} characters'}
        return {'text': ''.join(pieces)}
    except MemoryError:
        return {'problem': f'{step}: it needs more than {memory >> 20} MiB of memory'}
    except Exception as error:  # a template may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return {'problem': f'{step}: {reason[:300]}'}


def _environment() -> jinja2.Environment:
    """What templates of public models may use: loop controls, the tag `generation` around what a
    model says, and functions that refuse a conversation and tell the date.
    """

    class Generation(Extension):
        tags = {'generation'}

        def parse(self, parser):
            next(parser.stream)
            return parser.parse_statements(('name:endgeneration',), drop_needle=True)

    def refuse(message):
        raise jinja2.TemplateError(message)

    def to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        form: dict[str, Any] = dict(indent=indent, separators=separators, sort_keys=sort_keys)
        return json.dumps(value, ensure_ascii=ensure_ascii, **form)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, 'jinja2.ext.loopcontrols']
    )
    environment.filters['tojson'] = to_json
    environment.globals |= {
        'raise_exception': refuse,
        'strftime_now': lambda form: datetime.datetime.now().strftime(form),
    }
    return environment


if __name__ == '__main__':
    sys.stdout.write(json.dumps(rendered(**json.load(sys.stdin))))
