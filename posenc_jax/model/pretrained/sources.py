"""What a public checkpoint holds, tensor by tensor: its config in Hugging Face's terms, and lazily read arrays."""

import json
import pathlib
from typing import Any, Protocol

import numpy as np

from posenc_jax.core.registry import nearest


class PretrainedError(ValueError):
    """A checkpoint that cannot be used: the message names file, tensor, what was found and what was expected."""


class UnknownTokenizerError(PretrainedError):
    """A tokenizer of a kind that is not read; the weights beside it may be."""


class Source(Protocol):
    """A checkpoint on disk.

    Attributes:
      path: file or directory, for messages.
      config: sizes and choices under the names of a Hugging Face `config.json`.
    """

    path: pathlib.Path
    config: dict[str, Any]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor, without reading them."""

    def read(self, name: str) -> np.ndarray:
        """One tensor, in the dtype it is stored in (quantised ones in float32)."""

    def file(self, name: str) -> pathlib.Path:
        """The file that holds a tensor, for messages."""

    def tokenizer(self):
        """A `tokenizers.Tokenizer`, or None where the checkpoint has none."""


def open_source(path: str | pathlib.Path) -> Source:
    """The source at `path`: a directory with `config.json` and safetensors, or a `.gguf` file.

    Raises:
      FileNotFoundError: there is nothing.
      PretrainedError: neither of the two, or a file that is damaged.
    """
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        return HuggingFace(path)
    if not path.exists():
        raise FileNotFoundError(f'no such checkpoint: {path}')
    if path.suffix != '.gguf':
        raise PretrainedError(f'{path} is neither a directory with config.json nor a .gguf file')
    return GGUF(path)


def is_pretrained(path: str | pathlib.Path) -> bool:
    """Whether `path` is a public checkpoint rather than the directory of a training run."""
    path = pathlib.Path(path).expanduser()
    if path.is_dir():
        config = path / 'config.json'
        return config.is_file() and 'model_type' in _json(config)
    return path.suffix == '.gguf'


class HuggingFace:
    """A directory with `config.json`, `model.safetensors` (or its shards and their index) and `tokenizer.json`."""

    def __init__(self, path: pathlib.Path):
        self.path = path
        self.config = _json(path / 'config.json')
        self._opened: dict[pathlib.Path, Any] = {}
        self._known: dict[pathlib.Path, frozenset[str]] = {}
        index = path / 'model.safetensors.index.json'
        if index.is_file():
            shards = _json(index).get('weight_map')
            if not isinstance(shards, dict) or not all(isinstance(file, str) for file in shards.values()):
                raise PretrainedError(f"{index} has no 'weight_map' from tensors to files")
            self._files = {name: path / file for name, file in shards.items()}
        else:
            single = path / 'model.safetensors'
            if not single.is_file():
                raise FileNotFoundError(f'{path} has neither model.safetensors nor {index.name}')
            self._files = {name: single for name in self._open(single).keys()}
        for name, file in self._files.items():
            if name not in self._names(file):
                raise PretrainedError(f'{file} lacks the tensor {name!r} that {index.name} places there')
        for file in sorted(set(self._files.values())):
            if surplus := sorted(self._names(file) - self._files.keys()):
                raise PretrainedError(f'{file} has a tensor {surplus[0]!r} that {index.name} does not list')
        generation = path / 'generation_config.json'
        _check_ids(self.config, self.config, path / 'config.json')
        if generation.is_file():
            declared = _json(generation)
            _check_ids(declared, self.config, generation)
            if declared.get('eos_token_id') is not None:  # generation goes by this file, which may name more ends
                self.config['eos_token_id'] = declared['eos_token_id']

    def shapes(self):
        return {name: tuple(self._open(file).get_slice(name).get_shape()) for name, file in self._files.items()}

    def read(self, name):
        return self._open(self._files[name]).get_tensor(name)

    def file(self, name):
        return self._files[name]

    def tokenizer(self):
        file = self.path / 'tokenizer.json'
        if not file.is_file():
            return None
        import tokenizers

        try:
            return tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exceptions
            raise PretrainedError(f'{file} is not a tokenizer: {error}') from None

    def _names(self, file: pathlib.Path) -> frozenset[str]:
        if file not in self._known:
            self._known[file] = frozenset(self._open(file).keys())
        return self._known[file]

    def _open(self, file: pathlib.Path):
        if file not in self._opened:
            self._opened[file] = self._safetensors(file)
        return self._opened[file]

    def _safetensors(self, file: pathlib.Path):
        import ml_dtypes  # noqa: F401  (numpy learns bfloat16)
        import safetensors

        if not file.is_file():
            raise FileNotFoundError(f'{file} is missing: {self.path} is not complete')
        try:
            return safetensors.safe_open(file, framework='numpy')
        except safetensors.SafetensorError as error:
            raise PretrainedError(f'{file} is damaged or not a safetensors file ({file.stat().st_size} bytes): {error}') from None


# GGUF names of one layer -> Hugging Face names of llama.
_GGUF_LAYER = {
    'attn_norm': 'input_layernorm',
    'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj',
    'attn_output': 'self_attn.o_proj',
    'ffn_norm': 'post_attention_layernorm',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
}
_GGUF_TOP = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
# Factors that divide the rotary frequencies, which converters of Llama 3 write in place of its declared scaling.
_GGUF_FACTORS = 'rope_freqs.weight'
_GGUF_BETAS = {'yarn_beta_fast': 'beta_fast', 'yarn_beta_slow': 'beta_slow'}
# Fields of `llama.rope.scaling` that are read; `finetuned` tells how the weights came about.
_GGUF_SCALING = ('type', 'factor', 'original_context_length', 'finetuned', *_GGUF_BETAS)
# Those that are not, with the values at which they do nothing.
_GGUF_NEUTRAL = {
    'attn_factor': (1.0,),
    'alpha': (0.0,),
    'yarn_attn_factor': (1.0,),
    'yarn_ext_factor': (1.0, -1.0),
    'yarn_log_multiplier': (0.0,),
}


class GGUF:
    """A GGUF file of llama architecture. Quantised tensors are read as float32.

    Rows of query and key projections are stored for interleaved planes; they are put back in the order of halves.
    """

    def __init__(self, path: pathlib.Path):
        import gguf

        self.path = path
        try:
            self._reader = gguf.GGUFReader(path)
        except (ValueError, IndexError, OSError, KeyError) as error:
            raise PretrainedError(f'{path} is damaged or not a GGUF file ({path.stat().st_size} bytes): {error}') from None
        architecture = self._field('general.architecture')
        if architecture != 'llama':
            raise PretrainedError(f'{path}: GGUF files of architecture llama are read, this one is {architecture!r}')
        self._tensors = {}
        for tensor in self._reader.tensors:
            if tensor.name != _GGUF_FACTORS:
                self._tensors[self._name(tensor.name)] = tensor
        heads = self._field('llama.attention.head_count')
        width = self._field('llama.embedding_length')
        if not heads > 0:
            raise PretrainedError(f'{path}: llama.attention.head_count is {heads}, expected a positive integer')
        head_dim = self._field('llama.rope.dimension_count', width // heads)
        self.config = {
            'model_type': 'llama',
            'hidden_size': width,
            'num_hidden_layers': self._field('llama.block_count'),
            'num_attention_heads': heads,
            'num_key_value_heads': self._field('llama.attention.head_count_kv', heads),
            'head_dim': self._field('llama.attention.key_length', head_dim),
            'intermediate_size': self._field('llama.feed_forward_length'),
            'rms_norm_eps': self._field('llama.attention.layer_norm_rms_epsilon'),
            'rope_theta': self._field('llama.rope.freq_base', 10000.0),
            'max_position_embeddings': self._field('llama.context_length'),
            'vocab_size': len(self._field('tokenizer.ggml.tokens')),
            'tie_word_embeddings': 'lm_head.weight' not in self._tensors,
            'hidden_act': 'silu',
            'bos_token_id': self._field('tokenizer.ggml.bos_token_id', None),
            'eos_token_id': self._field('tokenizer.ggml.eos_token_id', None),
            **self._scaling(),
        }
        begins = self._field('tokenizer.ggml.add_bos_token', False)
        _check_ids(self.config, self.config, path, also=('bos_token_id',) if begins else ())

    def _scaling(self):
        """The scaling as llama.cpp applies it: frequencies are divided by the factors of a tensor and by that of a field."""
        prefix = 'llama.rope.scaling.'
        found = {name.removeprefix(prefix): self._field(name) for name in self._reader.fields if name.startswith(prefix)}
        for name, value in found.items():
            neutral = _GGUF_NEUTRAL.get(name, ())
            if name not in _GGUF_SCALING and value not in neutral:
                expected = f'expected {neutral[0]}' if neutral else nearest(name, (*_GGUF_SCALING, *_GGUF_NEUTRAL))
                raise PretrainedError(f'{self.path}: {prefix}{name}={value} is not supported; {expected}')
        if found.get('type', 'none') != 'none' and 'factor' not in found:
            raise PretrainedError(f'{self.path}: rope scaling of type {found["type"]!r} lacks the field {prefix}factor')
        # A file without a type means linear, and the first ones have the factor elsewhere.
        kind, factor = found.get('type', 'linear'), found.get('factor', self._field('llama.rope.scale_linear', 1.0))
        if kind == 'none':
            factor = 1.0
        original = found.get('original_context_length')
        lengths = {} if original is None else {'original_max_position_embeddings': original}
        tensors = [self._floats(_GGUF_FACTORS, tensor) for tensor in self._reader.tensors if tensor.name == _GGUF_FACTORS]
        if tensors and not np.all(tensors[0] == 1):
            if kind != 'linear' and factor != 1.0:
                beside = f'rope scaling of type {kind!r} beside {_GGUF_FACTORS}'
                raise PretrainedError(f'{self.path}: {beside}, expected linear or none')
            divisors = (np.asarray(tensors[0], np.float64).ravel() * factor).tolist()
            lists = {'long_factor': divisors, 'short_factor': divisors}
            return {'rope_scaling': {'rope_type': 'longrope', 'attention_factor': 1.0, 'factor': 1.0, **lists, **lengths}}
        if factor == 1.0:
            return {}
        betas = {ours: found[theirs] for theirs, ours in _GGUF_BETAS.items() if theirs in found and kind == 'yarn'}
        return {'rope_scaling': {'rope_type': kind, 'factor': factor, **lengths, **betas}}

    _REQUIRED = object()

    def _field(self, key, default=_REQUIRED):
        field = self._reader.get_field(key)
        if field is not None:
            return field.contents()
        if default is self._REQUIRED:
            raise PretrainedError(f'{self.path} lacks the field {key!r}')
        return default

    def _name(self, name: str) -> str:
        match name.split('.'):
            case ['blk', number, kind, suffix] if kind in _GGUF_LAYER:
                return f'model.layers.{number}.{_GGUF_LAYER[kind]}.{suffix}'
            case [kind, suffix] if kind in _GGUF_TOP:
                return f'{_GGUF_TOP[kind]}.{suffix}'
        return name

    def shapes(self):
        return {name: tuple(int(n) for n in reversed(tensor.shape)) for name, tensor in self._tensors.items()}

    def read(self, name):
        array = self._floats(name, self._tensors[name])
        kind = name.split('.')[-2]
        if kind in ('q_proj', 'k_proj'):
            head_dim, shape = self.config['head_dim'], array.shape
            array = array.reshape(-1, head_dim // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        return array

    def file(self, name):
        return self.path

    def _floats(self, name, tensor) -> np.ndarray:
        import gguf

        try:
            return gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError:  # also of integers
            found = tensor.tensor_type.name
            raise PretrainedError(f'{self.path}: the tensor {name!r} is of type {found}, expected e.g. F32 or Q8_0') from None

    def tokenizer(self):
        if self._field('tokenizer.ggml.model') != 'gpt2':
            raise UnknownTokenizerError(
                f'{self.path}: byte-level BPE tokenizers (gpt2) are read, this one is {self._field("tokenizer.ggml.model")!r}'
            )
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

        tokens = self._field('tokenizer.ggml.tokens')
        merges = [tuple(merge.split(' ', 1)) for merge in self._field('tokenizer.ggml.merges')]
        try:
            tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
        except Exception as error:  # the library raises bare Exceptions
            raise PretrainedError(f'{self.path}: the tokenizer cannot be built: {error}') from None
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
        style = self._field('tokenizer.ggml.pre', 'default')
        if style == 'smollm':
            byte_level = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])
        elif style not in ('default', 'gpt-2'):
            raise UnknownTokenizerError(f"{self.path}: pre-tokenizers smollm and gpt-2 are known, this one is {style!r}")
        tokenizer.pre_tokenizer = byte_level
        tokenizer.decoder = decoders.ByteLevel()
        special = [token for token, kind in zip(tokens, self._field('tokenizer.ggml.token_type')) if kind == 3]
        tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        if self._field('tokenizer.ggml.add_bos_token', False):
            bos = self._field('tokenizer.ggml.bos_token_id')
            named = [(tokens[bos], bos)]
            tokenizer.post_processor = processors.TemplateProcessing(single=[tokens[bos], '$A'], special_tokens=named)
        return tokenizer


def _json(file: pathlib.Path) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(f'{file} is missing: {file.parent} is not a Hugging Face checkpoint')
    try:
        found = json.loads(file.read_text())
    except (ValueError, RecursionError) as error:
        raise PretrainedError(f'{file} is not JSON: {error}') from None
    if not isinstance(found, dict):
        raise PretrainedError(f'{file} holds a {type(found).__name__}, expected an object')
    return found


# Ids that `transformers` writes where nobody chose one, whatever the vocabulary: such a model has no such token.
_DEFAULT_IDS = {'gpt2': 50256, 'phi3': 32000}


def special_ids(name: str, fields: dict[str, Any], config: dict[str, Any]) -> tuple[int, ...]:
    """The tokens that a file declares as e.g. 'eos_token_id': none, one or several.

    Args:
      name: of the field.
      fields: what the file holds.
      config: of the checkpoint.
    """
    declared, default = fields.get(name), _DEFAULT_IDS.get(str(config.get('model_type')))
    several = declared if isinstance(declared, list) else () if declared is None else (declared,)
    return tuple(token for token in several if token != default or token < config['vocab_size'])


def _check_ids(fields: dict[str, Any], config: dict[str, Any], file: pathlib.Path, *, also: tuple[str, ...] = ()) -> None:
    """Whether the tokens that a file declares and that are used are rows of the embedding table.

    Released files declare others as they like, e.g. padding just behind the table.
    """
    if not isinstance(size := config.get('vocab_size'), int):  # which is said where the model is described
        return
    for name in ('eos_token_id', *also):
        for token in special_ids(name, fields, config):
            if type(token) is not int or not 0 <= token < size:
                raise PretrainedError(f'{file}: {name}={token!r}, expected a token in 0 .. {size - 1}')


def check_tokenizer(tokenizer: Any, vocab_size: int, where: object) -> None:
    """Whether every id that a tokenizer gives, also around a text, is a row of the embedding table; it may give fewer.

    Raises:
      PretrainedError: names the largest id and the size of the table.
    """
    largest = max((*tokenizer.get_vocab().values(), *tokenizer.encode('').ids), default=-1)
    if largest >= vocab_size:
        raise PretrainedError(f'{where}: the tokenizer has ids up to {largest}, the vocabulary of the model ends at {vocab_size - 1}')
