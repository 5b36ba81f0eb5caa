"""Chat templates of public checkpoints: what a user says, written as the model was trained to read
it.
"""

import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from posenc_jax.base import extras
from posenc_jax.base.programs import printable
from posenc_jax.lab.pretrained.fields import (
    OBJECT,
    PretrainedError,
    check,
    is_file,
    read_json,
    several,
    shown,
    text,
)
from posenc_jax.lab.pretrained.tokenizer import one_line

LONGEST = 2**20  # characters of a template, far above those of published models
# Bounds of rendering one: seconds of processor time, bytes of memory, and characters of the text;
# and the seconds by the clock after which the process is ended where it gets no processor.
SECONDS, MEMORY, LONGEST_TEXT, PATIENCE = 5, 2**30, 2**24, 60
_OUT_OF_TIME = getattr(signal, 'SIGXCPU', 0)
_TEMPLATE = text(LONGEST, least=1)
_TOKENS = ('bos_token', 'eos_token', 'unk_token', 'pad_token')


class ChatTemplate:
    """A template in the language Jinja. It runs in the sandbox of the library jinja2, which gives
    it no access to Python, and in a process of its own (`chat_process.py`) with bounded time,
    memory and text.

    Args:
      template: the text of the template.
      tokens: texts of special tokens that it may use, such as 'bos_token'.
      where: the file, for error messages.

    Raises:
      PretrainedError: jinja2 is not installed, or the template is no text of at most `LONGEST`
        characters.

    Example:
      >>> chat = ChatTemplate(
      ...     '{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}', {}
      ... )
      >>> chat.render([{'role': 'user', 'content': 'Hello'}])
      '<user>Hello'
    """

    def __init__(self, template: str, tokens: Mapping[str, str], where: object = 'the template'):
        with one_line(f'{where}: the chat template cannot be read'):
            _check_library()
        self._where, self._tokens = where, dict(tokens)
        self._template = check(template, _TEMPLATE, where, 'chat_template')

    def render(self, messages: Sequence[Mapping[str, str]], *, answer: bool = True) -> str:
        """The text of a conversation.

        Args:
          messages: each with a 'role' ('system', 'user' or 'assistant') and a 'content'.
          answer: whether the text ends where the model is to answer.

        Raises:
          PretrainedError: the template is not in its language, refuses the messages, or fails (the
            message has its reason); it takes more than `SECONDS` of processor time or `MEMORY`
            bytes, or its text has more than `LONGEST_TEXT` characters.
        """
        values = {
            **dict(messages=[dict(message) for message in messages], tools=None, documents=None),
            **dict(self._tokens, add_generation_prompt=answer),
        }
        bounds = dict(seconds=SECONDS, memory=MEMORY, longest=LONGEST_TEXT)
        found = _answer({'template': self._template, 'values': values, **bounds})
        if 'problem' in found:
            raise PretrainedError(f'{self._where}: the chat template {printable(found["problem"])}')
        return found['text']


def _check_library() -> None:
    with extras.explained():
        import jinja2  # noqa: F401


def _answer(asked: Mapping[str, Any]) -> dict[str, str]:
    """What the process of `chat_process.py` answers, or the 'problem' that it ended early."""
    script = pathlib.Path(__file__).with_name('chat_process.py')
    # With -P the folder of the script, whose files have common names, is not on the path.
    command = [sys.executable, '-P', str(script)]
    try:
        done = subprocess.run(
            command, input=json.dumps(asked).encode(), capture_output=True, timeout=PATIENCE
        )
    except subprocess.TimeoutExpired:
        return {'problem': f'fails: it did not end within {PATIENCE} seconds'}
    if done.returncode == -_OUT_OF_TIME:
        return {'problem': f'fails: it did not end within {SECONDS} seconds of processor time'}
    if done.returncode:
        said = (done.stderr.decode(errors='replace').split('\n')[-2:-1] or [''])[0][:300]
        return {'problem': f'fails: its process ended with status {done.returncode} {said}'.strip()}
    return json.loads(done.stdout)


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
