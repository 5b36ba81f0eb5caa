"""Hugging Face directories: a tiny one of every architecture, with fields, headers, indices and
bytes damaged.
"""

import json
import pathlib
import random
import shutil
import struct

import jax
import numpy as np
from safetensors.numpy import save_file

from benchmarks.fuzz.damage import changed_bytes, changed_json, odd
from benchmarks.fuzz.target import Target
from posenc_jax.lab.pretrained import load_pretrained
from posenc_jax.lab.pretrained.architectures import describe

_LLAMA = {
    'hidden_size': 8, 'num_hidden_layers': 2, 'num_attention_heads': 2, 'num_key_value_heads': 1,
    'head_dim': 4, 'intermediate_size': 6,
    'hidden_act': 'silu', 'rms_norm_eps': 1e-5, 'max_position_embeddings': 16, 'vocab_size': 5,
    'rope_theta': 1e4, 'eos_token_id': 1,
    'tie_word_embeddings': False,
}  # fmt: skip
_YARN = {
    'rope_type': 'yarn',
    'factor': 4.0,
    'original_max_position_embeddings': 4,
    'beta_fast': 32.0,
    'truncate': True,
    'mscale': 1.0,
}
_LONG = {'type': 'longrope', 'long_factor': [1.0, 2.0], 'short_factor': [1.0, 1.5], 'factor': 2.0}
_LLAMA3 = {
    'rope_type': 'llama3',
    'factor': 8.0,
    'low_freq_factor': 1.0,
    'high_freq_factor': 4.0,
    'original_max_position_embeddings': 8,
}
_NEOX = {
    **_LLAMA,
    'rotary_pct': 0.5,
    'use_parallel_residual': True,
    'hidden_act': 'gelu',
    'layer_norm_eps': 1e-5,
}
_ATTENTION = {'alibi': True, 'alibi_bias_max': 8}
_BLOOM = {
    'hidden_size': 8,
    'n_layer': 2,
    'n_head': 2,
    'vocab_size': 5,
    'layer_norm_epsilon': 1e-5,
    'seq_length': 16,
}
_GPT2 = {
    'n_embd': 8, 'n_layer': 2, 'n_head': 2, 'n_inner': 6, 'n_positions': 16, 'vocab_size': 5,
    'layer_norm_epsilon': 1e-5,
    'activation_function': 'gelu_new',
}  # fmt: skip
_MPT = {
    'd_model': 8,
    'n_layers': 2,
    'n_heads': 2,
    'max_seq_len': 16,
    'vocab_size': 5,
    'attn_config': _ATTENTION,
    'no_bias': True,
}
CONFIGS = {
    'llama': {**_LLAMA, 'model_type': 'llama', 'rope_scaling': _LLAMA3},
    'mistral': {
        **_LLAMA,
        'model_type': 'mistral',
        'sliding_window': 4,
        'layer_types': ['full_attention', 'sliding_attention'],
    },
    'qwen2': {
        **_LLAMA,
        'model_type': 'qwen2',
        'rope_parameters': _YARN,
        'max_window_layers': 1,
        'sliding_window': 4,
        'use_sliding_window': True,
    },
    'phi3': {
        **_LLAMA,
        'model_type': 'phi3',
        'original_max_position_embeddings': 8,
        'rope_scaling': _LONG,
    },
    'gpt_neox': {
        **_NEOX,
        'model_type': 'gpt_neox',
        'rope_scaling': {'type': 'linear', 'factor': 2.0},
    },
    'gpt2': {**_GPT2, 'model_type': 'gpt2'},
    'bloom': {**_BLOOM, 'model_type': 'bloom'},
    'mpt': {**_MPT, 'model_type': 'mpt'},
}
SINGLE, INDEX = 'model.safetensors', 'model.safetensors.index.json'
NAMES = (
    '../config.json',
    '/etc/passwd',
    '..',
    '.',
    '',
    'a/b',
    'x' * 300,
    '漢' * 100,
    '\0',
    'config.json',
    'missing.safetensors',
    3,
    None,
)


def prepare(folder: pathlib.Path) -> None:
    """Every architecture twice: in one file, and in two with an index."""
    rng = np.random.default_rng(0)
    for name, config in CONFIGS.items():
        leaves = describe(config, name).leaves.values()
        tensors = {
            leaf.name.format(n): rng.normal(size=leaf.shape).astype(np.float32)
            for leaf in leaves
            for n in range(2)
        }
        for parts in (1, 2):
            path = folder / f'{name}_{parts}'
            path.mkdir()
            (path / 'config.json').write_text(json.dumps(config))
            (path / 'generation_config.json').write_text('{"eos_token_id": [1, 2]}')
            placed = {
                tensor: SINGLE if parts == 1 else f'model-{i % 2}.safetensors'
                for i, tensor in enumerate(tensors)
            }
            for file in set(placed.values()):
                save_file(
                    {tensor: array for tensor, array in tensors.items() if placed[tensor] == file},
                    path / file,
                )
            if parts == 2:
                (path / INDEX).write_text(json.dumps({'weight_map': placed}))


def damaged(rng: random.Random, path: pathlib.Path) -> str:
    """Damages one file of a directory; which one, and how."""
    file = rng.choice(sorted(path.iterdir()))
    if rng.random() < 0.5:
        file = path / 'config.json'
    data = file.read_bytes()
    if file.suffix == '.json':
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):  # it is damaged already
            found = {}
        match rng.randrange(12):
            case 0:
                file.write_bytes(changed_bytes(rng, data))
            case 1:
                file.write_bytes(b'[' * 10_000 + data + b']' * 10_000)
            case 2 | 3 if (
                file.name == INDEX
                and isinstance(found, dict)
                and isinstance(found.get('weight_map'), dict)
            ):
                found['weight_map'][rng.choice([*found['weight_map'], 'x', ''])] = rng.choice(NAMES)
                file.write_text(json.dumps(found))
            case 4 | 5 if isinstance(found, dict):
                name = rng.choice(
                    (
                        'rope_scaling',
                        'rope_parameters',
                        'head_dim',
                        'vocab_size',
                        'sliding_window',
                        'n_ctx',
                        'layer_types',
                        'eos_token_id',
                    )
                )
                file.write_text(
                    json.dumps({**found, name: rng.choice((odd(rng), _YARN, _LONG, _LLAMA3))})
                )
            case _:
                file.write_text(json.dumps(changed_json(rng, found)))
    elif rng.random() < 0.4 or len(data) < 8:
        length = struct.unpack('<Q', data[:8])[0] if len(data) >= 8 else 0
        file.write_bytes(changed_bytes(rng, data, near=min(8 + length, len(data))))
    else:
        (length,) = struct.unpack('<Q', data[:8])
        try:
            header = json.dumps(changed_json(rng, json.loads(data[8 : 8 + length]))).encode()
        except (ValueError, RecursionError):
            header = changed_bytes(rng, data[8 : 8 + min(length, len(data))])
        file.write_bytes(struct.pack('<Q', len(header)) + header + data[8 + length :])
    return file.name


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> tuple[pathlib.Path, str]:
    name = rng.choice(sorted(path.name for path in good.iterdir()))
    shutil.copytree(good / name, own, dirs_exist_ok=True)
    files = [damaged(rng, own) for _ in range(rng.choice((1, 1, 1, 2, 4)))]
    return own, f'{name}, damaged: {", ".join(files)}'


def read(given: tuple[pathlib.Path, str]) -> None:
    load_pretrained(given[0])
    jax.clear_caches()  # every config is compiled for, and nothing is used again


TARGET = Target(make=make, read=read, prepare=prepare, show=lambda given: given[1])
