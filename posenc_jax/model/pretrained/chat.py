"""Chat templates of public checkpoints: what a user says, written as the model was trained to read
it.
"""

import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from posenc_jax.core import extras
from posenc_jax.model.pretrained.fields import (
    OBJECT,
    PretrainedError,
    check,
    is_file,
    read_json,
    several,
    shown,
    text,
)
from posenc_jax.model.pretrained.tokenizer import one_line

LONGEST = 2**20  # characters of a template, far above those of published models
_TEMPLATE = text(LONGEST, least=1)
_TOKENS = ('bos_token', 'eos_token', 'unk_token', 'pad_token')


class ChatTemplate:
    """A template in the language Jinja. It runs in the sandbox of the library jinja2, which gives
    it no access to Python.

    Args:
      template: the text of the template.
      tokens: texts of special tokens that it may use, such as 'bos_token'.
      where: the file, for error messages.

    Raises:
      PretrainedError: jinja2 is not installed, or the template is not in its language.

    Example:
      >>> chat = ChatTemplate(
      ...     '{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}', {}
      ... )
      >>> chat.render([{'role': 'user', 'content': 'Hello'}])
      '<user>Hello'
    """

    def __init__(self, template: str, tokens: Mapping[str, str], where: object = 'the template'):
        self._where, self._tokens = where, dict(tokens)
        with one_line(f'{where}: the chat template cannot be read'):
            self._template = _environment().from_string(
                check(template, _TEMPLATE, where, 'chat_template')
            )

    def render(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
        """The text of a conversation.

        Args:
          messages: each with a 'role' ('system', 'user' or 'assistant') and a 'content'.
          answer: whether the text ends where the model is to answer.

        Raises:
          PretrainedError: the template refuses the messages, or fails; the message has its reason.
        """
        with one_line(f'{self._where}: the chat template fails'):
            return self._template.render(
                messages=[dict(message) for message in messages],
                add_generation_prompt=answer,
                tools=None,
                documents=None,
                **self._tokens,
            )


def directory_template(path: pathlib.Path) -> ChatTemplate | None:
    """The template of a Hugging Face directory: `chat_template.jinja`, or the field of
    `tokenizer_config.json`, where one of several has the name 'default'; None if there is none.

    Raises:
      PretrainedError: a file that is damaged; as for `ChatTemplate`.
    """
    file, described = path / 'chat_template.jinja', path / 'tokenizer_config.json'
    fields = read_json(described) if is_file(described) else {}
    tokens = {name: _token(fields[name]) for name in _TOKENS if fields.get(name) is not None}
    if is_file(file):
        return ChatTemplate(_read(file), tokens, file)
    found = fields.get('chat_template')
    if isinstance(found, list):
        check(found, several(OBJECT, 100), described, 'chat_template')
        named = {str(one.get('name')): one.get('template') for one in found}
        if 'default' not in named:
            raise PretrainedError(
                f'{described}: chat_template has the names {shown(sorted(named))}, expected one '
                "named 'default'"
            )
        found = named['default']
    return None if found is None else ChatTemplate(found, tokens, described)


def _token(field: Any) -> str:
    """The text of a special token, which some files describe by an object."""
    return str(field.get('content', '') if isinstance(field, dict) else field)


def _read(file: pathlib.Path) -> str:
    try:
        if (size := file.stat().st_size) > 4 * LONGEST:
            raise PretrainedError(f'{file} has {size} bytes, expected at most {4 * LONGEST}')
        return file.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise PretrainedError(f'{file} cannot be read: {error}') from None


def _environment() -> Any:
    """What templates of public models may use: loop controls, the tag `generation` around what a
    model says, and functions that refuse a conversation and tell the date.
    """
    with extras.explained():
        import jinja2
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment

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
