"""GGUF files of llama, qwen and gemma architectures, read under the names of a Hugging Face
checkpoint.
"""

import pathlib
from typing import Any

import numpy as np

from posenc_jax.base import extras
from posenc_jax.lab.pretrained.chat import LONGEST, ChatTemplate
from posenc_jax.lab.pretrained.config_fields import FIELDS, ROPE
from posenc_jax.lab.pretrained.fields import (
    FLAG,
    Kind,
    PretrainedError,
    check,
    several,
    shown,
    text,
    whole,
)
from posenc_jax.lab.pretrained.gguf_header import Header
from posenc_jax.lab.pretrained.special_tokens import check_ids
from posenc_jax.lab.pretrained.stored import Stored, read_bytes
from posenc_jax.lab.pretrained.tokenizer import UnknownTokenizerError, one_line
from posenc_jax.protocol.errors import nearest

# The architectures that are read, and the `model_type` of the same model.
ARCHITECTURES = {
    'llama': 'llama',
    'qwen2': 'qwen2',
    'qwen3': 'qwen3',
    'gemma2': 'gemma2',
    'gemma3': 'gemma3_text',
}
# Tensor names of one layer: GGUF -> Hugging Face.
_LAYER = {
    'attn_norm': 'input_layernorm',
    'attn_q': 'self_attn.q_proj',
    'attn_k': 'self_attn.k_proj',
    'attn_v': 'self_attn.v_proj',
    'attn_q_norm': 'self_attn.q_norm',
    'attn_k_norm': 'self_attn.k_norm',
    'attn_output': 'self_attn.o_proj',
    'ffn_norm': 'post_attention_layernorm',
    'ffn_gate': 'mlp.gate_proj',
    'ffn_up': 'mlp.up_proj',
    'ffn_down': 'mlp.down_proj',
}
_GEMMA_LAYER = {
    'post_attention_norm': 'post_attention_layernorm',
    'ffn_norm': 'pre_feedforward_layernorm',
    'post_ffw_norm': 'post_feedforward_layernorm',
}
_TOP = {'token_embd': 'model.embed_tokens', 'output_norm': 'model.norm', 'output': 'lm_head'}
# A tensor of factors that divide the rotary frequencies. Converters of Llama 3 write it instead of
# the declared scaling.
_FACTORS = 'rope_freqs.weight'
_BETAS = {'yarn_beta_fast': 'beta_fast', 'yarn_beta_slow': 'beta_slow'}
# Fields of `rope.scaling` that are accepted; `finetuned` does not change the encoding.
_SCALING = {
    'type': text(100),
    'factor': ROPE['factor'],
    'original_context_length': ROPE['original_max_position_embeddings'],
    'finetuned': FLAG,
    **{theirs: ROPE[ours] for theirs, ours in _BETAS.items()},
}
# Fields that are not supported, with the values at which they have no effect.
_NEUTRAL = {
    'attn_factor': (1.0,),
    'alpha': (0.0,),
    'yarn_attn_factor': (1.0,),
    'yarn_ext_factor': (1.0, -1.0),
    'yarn_log_multiplier': (0.0,),
}
# The pieces of a text that Qwen2 encodes on their own: clitics, words with one sign before them,
# single digits, signs, and spaces.
_QWEN2_PIECE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r'| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+'
)
_TEXT, _TEXTS = text(100), several(text(100_000), 2**24)
_TOKEN = whole(0, 2**32 - 1)


class GGUF:
    """A GGUF file of one of the `ARCHITECTURES`. Quantised tensors are read as float32.

    A file of llama architecture stores the rows of query and key projections for the interleaved
    rotary layout; `read` puts them into the order of the half layout. A file of gemma architecture
    stores the scales of norms with 1 added; `read` takes it off.
    """

    def __init__(self, path: pathlib.Path):
        self.path = self.described_in = path
        self._header = Header(path)
        self._kind = self._field('general.architecture', _TEXT)
        if self._kind not in ARCHITECTURES:
            raise PretrainedError(
                f'{path}: unknown architecture {shown(self._kind)} of a GGUF file; '
                f'{nearest(self._kind, ARCHITECTURES)}'
            )
        self._gemma = self._kind.startswith('gemma')
        self._tensors: dict[str, Stored] = {}
        for stored, tensor in self._header.tensors.items():
            if stored == _FACTORS:
                continue
            if (name := self._name(stored)) in self._tensors:
                raise PretrainedError(f'{path} has the tensor {name!r} twice, under two names')
            self._tensors[name] = tensor
        self.config = {
            **self._sizes(),
            **self._scaling(),
            **(self._of_gemma() if self._gemma else {}),
        }
        begins = self._field('tokenizer.ggml.add_bos_token', FLAG, False)
        check_ids(self.config, self.config, path, also=('bos_token_id',) if begins else ())

    def _sizes(self) -> dict[str, Any]:
        """The fields of the config that all architectures have."""
        heads = self._size('attention.head_count', 'num_attention_heads')
        width = self._size('embedding_length', 'hidden_size')
        head_dim = self._size('rope.dimension_count', 'head_dim', max(width // heads, 1))
        return {
            'model_type': ARCHITECTURES[self._kind],
            'hidden_size': width,
            'num_hidden_layers': self._size('block_count', 'num_hidden_layers'),
            'num_attention_heads': heads,
            'num_key_value_heads': self._size(
                'attention.head_count_kv', 'num_key_value_heads', heads
            ),
            'head_dim': self._size('attention.key_length', 'head_dim', head_dim),
            'intermediate_size': self._size('feed_forward_length', 'intermediate_size'),
            'rms_norm_eps': self._size('attention.layer_norm_rms_epsilon', 'rms_norm_eps'),
            'rope_theta': self._size(
                'rope.freq_base', 'rope_theta', 1e6 if self._kind == 'gemma3' else 1e4
            ),
            'max_position_embeddings': self._size('context_length', 'max_position_embeddings'),
            'vocab_size': len(self._field('tokenizer.ggml.tokens', _TEXTS)),
            'tie_word_embeddings': 'lm_head.weight' not in self._tensors,
            'hidden_act': 'silu',
            'bos_token_id': self._field('tokenizer.ggml.bos_token_id', _TOKEN, None),
            'eos_token_id': self._field('tokenizer.ggml.eos_token_id', _TOKEN, None),
        }

    def _of_gemma(self) -> dict[str, Any]:
        """The fields of the config that only gemma architectures have. What a file leaves out is
        what llama.cpp takes then.
        """
        sizes, second = self._sizes(), self._kind == 'gemma2'
        # The largest models scale queries by the width over the heads; no field says so.
        largest = sizes['num_hidden_layers'] == (46 if second else 62)
        size = self._size('attention.sliding_window', 'sliding_window', 4096 if second else None)
        optional = {
            'sliding_window': size,
            'rope_local_base_freq': self._size('rope.freq_base_swa', 'rope_theta', 1e4),
            'attn_logit_softcapping': self._size(
                'attn_logit_softcapping', 'attn_logit_softcapping', 50.0 if second else None
            ),
            'final_logit_softcapping': self._size(
                'final_logit_softcapping', 'final_logit_softcapping', 30.0 if second else None
            ),
            'layer_types': None if size else ['full_attention'] * sizes['num_hidden_layers'],
        }
        return {
            'hidden_act': 'gelu_pytorch_tanh',
            'hidden_activation': 'gelu_pytorch_tanh',
            'query_pre_attn_scalar': sizes['hidden_size'] / sizes['num_attention_heads']
            if largest
            else sizes['head_dim'],
            'sliding_window_pattern': self._size(
                'attention.sliding_window_pattern', 'sliding_window_pattern', 2 if second else 6
            ),
            **{name: value for name, value in optional.items() if value is not None},
        }

    def _scaling(self):
        """The rope scaling as llama.cpp applies it: frequencies are divided by the factors in a
        tensor and by the factor in a field.
        """
        prefix = f'{self._kind}.rope.scaling.'
        found = {
            name.removeprefix(prefix): value
            for name, value in self._header.fields.items()
            if name.startswith(prefix)
        }
        for name, value in found.items():
            neutral = _NEUTRAL.get(name, ())
            if name in _SCALING:
                check(value, _SCALING[name], self.path, f'{prefix}{name}')
            elif value not in neutral:
                expected = (
                    f'expected {neutral[0]}'
                    if neutral
                    else nearest(name[:100], (*_SCALING, *_NEUTRAL))
                )
                raise PretrainedError(
                    f'{self.path}: {prefix}{name[:100]}={shown(value)} is not supported; {expected}'
                )
        if found.get('type', 'none') != 'none' and 'factor' not in found:
            raise PretrainedError(
                f'{self.path}: rope scaling of type {found["type"]!r} lacks the field '
                f'{prefix}factor'
            )
        # Without a type the scaling is linear. The oldest files have the factor in another field.
        kind = found.get('type', 'linear')
        factor = found.get(
            'factor', self._field(f'{self._kind}.rope.scale_linear', ROPE['factor'], 1.0)
        )
        if kind == 'none':
            factor = 1.0
        original = found.get('original_context_length')
        lengths = {} if original is None else {'original_max_position_embeddings': original}
        tensor = self._header.tensors.get(_FACTORS)
        divisors = None if tensor is None else self._floats(_FACTORS, tensor)
        if divisors is not None and not np.all(divisors == 1):
            if kind != 'linear' and factor != 1.0:
                beside = f'rope scaling of type {kind!r} together with {_FACTORS}'
                raise PretrainedError(f'{self.path}: {beside}, expected linear or none')
            divisors = (np.asarray(divisors, np.float64).ravel() * factor).tolist()
            check(
                divisors,
                ROPE['long_factor'],
                self.path,
                f'the tensor {_FACTORS!r}, times the factor',
            )
            lists = {'long_factor': divisors, 'short_factor': divisors}
            return {
                'rope_scaling': {
                    'rope_type': 'longrope',
                    'attention_factor': 1.0,
                    'factor': 1.0,
                    **lists,
                    **lengths,
                }
            }
        if factor == 1.0:
            return {}
        betas = {
            ours: found[theirs]
            for theirs, ours in _BETAS.items()
            if theirs in found and kind == 'yarn'
        }
        return {'rope_scaling': {'rope_type': kind, 'factor': factor, **lengths, **betas}}

    _REQUIRED = object()

    def _field(self, key: str, kind: Kind, default: Any = _REQUIRED):
        if key in self._header.fields:
            return check(self._header.fields[key], kind, self.path, key)
        if default is self._REQUIRED:
            raise PretrainedError(f'{self.path} lacks the field {key!r}')
        return default

    def _size(self, key: str, name: str, default: Any = _REQUIRED):
        """The value of a field of the architecture; `name` is its name in a Hugging Face config."""
        return self._field(f'{self._kind}.{key}', FIELDS[name], default)

    def shapes(self):
        return {name: tensor.shape for name, tensor in self._tensors.items()}

    def read(self, name):
        array = self._floats(name, self._tensors[name])
        kind = name.split('.')[-2]
        if self._gemma and kind.endswith('norm'):
            return array - 1
        if self._kind == 'llama' and kind in ('q_proj', 'k_proj'):
            head_dim, shape = self.config['head_dim'], array.shape
            array = array.reshape(-1, head_dim // 2, 2, *shape[1:]).swapaxes(1, 2).reshape(shape)
        return array

    def file(self, name):
        return self.path

    def _floats(self, name: str, tensor: Stored) -> np.ndarray:
        with extras.explained():
            import gguf

        rows = read_bytes(self.path, tensor).reshape(
            gguf.quant_shape_to_byte_shape(tensor.shape, tensor.kind)
        )
        try:
            # Numbers that are not finite are refused by the caller.
            with np.errstate(all='ignore'):
                return gguf.quants.dequantize(rows, tensor.kind)
        except NotImplementedError:  # raised for integers too
            raise PretrainedError(
                f'{self.path}: the tensor {name!r} is of type {tensor.kind.name}, expected e.g. '
                'F32 or Q8_0'
            ) from None

    def chat_template(self):
        template = self._field('tokenizer.chat_template', text(LONGEST, least=1), None)
        tokens, texts = {}, self._field('tokenizer.ggml.tokens', _TEXTS)
        for name in ('bos', 'eos'):
            number = self._field(f'tokenizer.ggml.{name}_token_id', _TOKEN, None)
            if number is not None and number < len(texts):
                tokens[f'{name}_token'] = texts[number]
        return None if template is None else ChatTemplate(template, tokens, self.path)

    def tokenizer(self):
        kind = self._field('tokenizer.ggml.model', _TEXT)
        style = self._field('tokenizer.ggml.pre', _TEXT, 'default')
        if kind != 'gpt2':
            raise UnknownTokenizerError(
                f'{self.path}: expected a byte-level BPE tokenizer (gpt2), this one is {kind!r}'
            )
        if style not in ('default', 'gpt-2', 'smollm', 'qwen2'):
            raise UnknownTokenizerError(
                f'{self.path}: expected the pre-tokenizer smollm, gpt-2 or qwen2, this one is '
                f'{style!r}'
            )
        with extras.explained():
            import tokenizers
            from tokenizers import pre_tokenizers, processors

        tokens = self._field('tokenizer.ggml.tokens', _TEXTS)
        ids = {token: i for i, token in enumerate(tokens)}
        if len(ids) < len(tokens):
            twice = next(token for i, token in enumerate(tokens) if ids[token] != i)
            raise PretrainedError(
                f'{self.path}: tokenizer.ggml.tokens has {shown(twice)} twice, expected every '
                'token once'
            )
        merges = [
            tuple(merge.split(' ', 1)) for merge in self._field('tokenizer.ggml.merges', _TEXTS)
        ]
        if bad := next((merge for merge in merges if len(merge) != 2), None):
            raise PretrainedError(
                f'{self.path}: tokenizer.ggml.merges has {shown(bad[0])}, expected two tokens '
                'and a blank between them'
            )
        kinds = self._field('tokenizer.ggml.token_type', several(whole(0, 100), len(tokens)))
        if len(kinds) != len(tokens):
            found = f'tokenizer.ggml.token_type has {len(kinds)} entries'
            raise PretrainedError(
                f'{self.path}: {found}, expected one for each of {len(tokens)} tokens'
            )
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=style != 'qwen2')
        cut: list[Any] = [byte_level]
        if style == 'smollm':
            cut.insert(0, pre_tokenizers.Digits(individual_digits=True))
        if style == 'qwen2':
            cut.insert(0, pre_tokenizers.Split(tokenizers.Regex(_QWEN2_PIECE), 'isolated'))
        with one_line(f'{self.path}: the tokenizer cannot be built'):
            tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(ids, merges))
            if style == 'qwen2':
                tokenizer.normalizer = tokenizers.normalizers.NFC()
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut) if cut[1:] else cut[0]
            tokenizer.decoder = tokenizers.decoders.ByteLevel()
            added = lambda token: tokenizers.AddedToken(token, special=True, normalized=False)
            tokenizer.add_special_tokens([added(t) for t, kind in zip(tokens, kinds) if kind == 3])
            if self._field('tokenizer.ggml.add_bos_token', FLAG, False):
                bos = self._field('tokenizer.ggml.bos_token_id', _TOKEN)
                tokenizer.post_processor = processors.TemplateProcessing(
                    single=[tokens[bos], '$A'], special_tokens=[(tokens[bos], bos)]
                )
        return tokenizer

    def _name(self, name: str) -> str:
        """The Hugging Face name of a tensor, or the name itself if there is none."""
        layer = {**_LAYER, **(_GEMMA_LAYER if self._gemma else {})}
        match name.split('.'):
            case ['blk', number, kind, suffix] if kind in layer:
                return f'model.layers.{number}.{layer[kind]}.{suffix}'
            case [kind, suffix] if kind in _TOP:
                return f'{_TOP[kind]}.{suffix}'
        return name
