"""Public checkpoints on disk, in one interface: the config under the names of Hugging Face, tensors
that are read one by one, and the tokenizer.
"""

import pathlib
from typing import Any, Protocol

import numpy as np

from posenc_jax.base.programs import printable
from posenc_jax.lab.files import paths
from posenc_jax.lab.pretrained.architectures import supported
from posenc_jax.lab.pretrained.chat import ChatTemplate, directory_template
from posenc_jax.lab.pretrained.fields import (
    OBJECT,
    PretrainedError,
    check,
    is_file,
    is_folder,
    read_json,
    shown,
)
from posenc_jax.lab.pretrained.gguf_file import GGUF
from posenc_jax.lab.pretrained.special_tokens import check_ids
from posenc_jax.lab.pretrained.stored import Safetensors
from posenc_jax.lab.pretrained.tokenizer import read_tokenizer
from posenc_jax.protocol.errors import near, shortened


class StoredCheckpoint(Protocol):
    """A checkpoint on disk.

    Attributes:
      path: file or directory of the checkpoint, for messages.
      described_in: the file that holds the config, for messages.
      config: sizes and choices under the names of a Hugging Face `config.json`.
    """

    path: pathlib.Path
    described_in: pathlib.Path
    config: dict[str, Any]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor by its name. No tensor is read."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor in its stored dtype; quantised tensors in float32."""
        ...

    def file(self, name: str) -> pathlib.Path:
        """The file that holds a tensor, for messages."""
        ...

    def tokenizer(self) -> Any:
        """A `tokenizers.Tokenizer`, or None where the checkpoint has none."""
        ...

    def chat_template(self) -> ChatTemplate | None:
        """The chat template, or None where the checkpoint has none."""
        ...


def _missing(path: pathlib.Path) -> str:
    """A path that does not exist, and the checkpoint beside it whose name is nearest."""
    named = lambda path: printable(shortened(str(path), 200))
    if not paths.is_local(path) or not is_folder(path.parent):
        return named(path)
    folders = (file.parent for file in path.parent.glob('*/config.json'))
    close = near(path.name, [place.name for place in (*path.parent.glob('*.gguf'), *folders)])
    return named(path) + (f'; did you mean {named(path.with_name(close[0]))}?' if close else '')


def open_source(path: str | pathlib.Path) -> StoredCheckpoint:
    """The source at `path`: a directory with `config.json` and safetensors, or a `.gguf` file.

    Raises:
      FileNotFoundError: `path` or a file of the checkpoint does not exist.
      PretrainedError: `path` is neither of the two, or a file is damaged.
    """
    path = _expanded(path)
    if is_folder(path):
        return HuggingFace(path)
    if not is_file(path):
        raise FileNotFoundError(f'no such checkpoint: {_missing(path)}')
    if path.suffix != '.gguf':
        raise PretrainedError(f'{path} is neither a directory with config.json nor a .gguf file')
    return GGUF(path)


def is_pretrained(path: str | pathlib.Path) -> bool:
    """Whether `path` is a public checkpoint rather than the directory of a training run.

    Raises:
      PretrainedError: a public checkpoint in a bucket.
      OSError: a bucket cannot be reached.
    """
    path = _expanded(path)
    if is_folder(path):
        config = path / 'config.json'
        found = is_file(config) and 'model_type' in read_json(config)
    else:
        found = path.suffix == '.gguf'
    if found and not paths.is_local(path):
        raise PretrainedError(
            f'{path} is in a bucket; copy the public checkpoint to a local folder'
        )
    return found


def _expanded(path: str | pathlib.Path) -> pathlib.Path:
    """The path with ~ replaced by a home directory, if that user exists."""
    try:
        return paths.path(path).expanduser()
    except RuntimeError:
        return paths.path(path)


class HuggingFace:
    """A directory with `config.json`, `model.safetensors` (or its shards and their index) and
    `tokenizer.json`.
    """

    def __init__(self, path: pathlib.Path):
        self.path, self.described_in = path, path / 'config.json'
        self.config = read_json(self.described_in)
        supported(self.config, self.described_in)  # before the tensors, whose files may be many
        self._opened: dict[pathlib.Path, Safetensors] = {}
        index = path / 'model.safetensors.index.json'
        if is_file(index):
            shards = check(read_json(index).get('weight_map'), OBJECT, index, 'weight_map')
            self._files = {name: _beside(index, name, file) for name, file in shards.items()}
        else:
            single = path / 'model.safetensors'
            if not is_file(single):
                raise FileNotFoundError(f'{path} has neither model.safetensors nor {index.name}')
            self._files = dict.fromkeys(self._open(single).tensors, single)
        for name, file in self._files.items():
            if name not in self._open(file).tensors:
                raise PretrainedError(
                    f'{file} lacks the tensor {name[:200]!r} that {index.name} places there'
                )
        for file, opened in self._opened.items():
            if surplus := sorted(opened.tensors.keys() - self._files.keys()):
                raise PretrainedError(
                    f'{file} has a tensor {surplus[0][:200]!r} that {index.name} does not list'
                )
        generation = path / 'generation_config.json'
        check_ids(self.config, self.config, path / 'config.json')
        if is_file(generation):
            declared = read_json(generation)
            check_ids(declared, self.config, generation)
            # Generation uses the ids of this file, which may name several end tokens.
            if declared.get('eos_token_id') is not None:
                self.config['eos_token_id'] = declared['eos_token_id']

    def shapes(self):
        return {name: self._open(file).tensors[name].shape for name, file in self._files.items()}

    def read(self, name):
        return self._open(self._files[name]).read(name)

    def file(self, name):
        return self._files[name]

    def tokenizer(self):
        file = self.path / 'tokenizer.json'
        return read_tokenizer(file) if is_file(file) else None

    def chat_template(self):
        return directory_template(self.path)

    def _open(self, file: pathlib.Path) -> Safetensors:
        if file not in self._opened:
            self._opened[file] = Safetensors(file)
        return self._opened[file]


def _beside(index: pathlib.Path, tensor: str, name: Any) -> pathlib.Path:
    """The file `name` in the directory of an index. It may be a link to any place, since download
    caches store files under their digests.
    """
    plain = (
        isinstance(name, str)
        and name not in ('', '..')
        and pathlib.PurePath(name).name == name
        and name.isprintable()
    )
    if not plain or len(name.encode(errors='replace')) > 255:  # file systems count bytes
        raise PretrainedError(
            f'{index}: weight_map[{shown(tensor)}]={shown(name)}, expected the name of a file in '
            f'{index.parent}'
        )
    return index.parent / name
