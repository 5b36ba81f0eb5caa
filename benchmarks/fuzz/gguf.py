"""GGUF files: a tiny one with fields, counts, types, places of tensors and bytes damaged."""

import logging
import pathlib
import random

import jax

from benchmarks.fuzz.damage import SIZES, changed_bytes
from benchmarks.fuzz.target import Target
from posenc_jax.lab.pretrained import load_pretrained
from posenc_jax.lab.pretrained.gguf_header import Header
from tests.lab.pretrained.load_test import gguf_scaling, write_gguf

logging.getLogger('gguf').setLevel(logging.ERROR)  # the writer says what it overwrites


def prepare(folder: pathlib.Path) -> None:
    write_gguf(folder / 'plain.gguf', bos=3)
    write_gguf(
        folder / 'yarn.gguf',
        fields=gguf_scaling(type='yarn', original_context_length=16, yarn_beta_fast=8.0),
    )
    write_gguf(folder / 'factors.gguf', factors=[1.0, 8.0], fields=gguf_scaling(type='linear'))
    for path in sorted(folder.iterdir()):
        header = Header(path)
        path.with_suffix('.txt').write_text('\n'.join([*header.fields, *header.tensors]))


FIELDS = (
    'general.alignment', 'llama.context_length', 'llama.embedding_length', 'llama.block_count',
    'llama.feed_forward_length',
    'llama.attention.head_count', 'llama.attention.head_count_kv',
    'llama.attention.layer_norm_rms_epsilon', 'llama.attention.key_length',
    'llama.rope.dimension_count', 'llama.rope.freq_base', 'llama.rope.scale_linear',
    'llama.rope.scaling.type', 'llama.rope.scaling.factor',
    'llama.rope.scaling.original_context_length', 'llama.rope.scaling.yarn_beta_fast',
    'llama.rope.scaling.attn_factor',
    'llama.rope.scaling.x', 'tokenizer.ggml.model', 'tokenizer.ggml.pre', 'tokenizer.ggml.tokens',
    'tokenizer.ggml.merges',
    'tokenizer.ggml.token_type', 'tokenizer.ggml.bos_token_id', 'tokenizer.ggml.eos_token_id',
    'tokenizer.ggml.add_bos_token',
)  # fmt: skip
VALUES = (
    0, 1, 2, 3, 4, 8, 16, 2**31, 2**32 - 1, True, False, 0.0, 1.0, 0.5, 2.0, -1.0, 1e-30, 1e30,
    float('nan'), float('inf'), '', 'linear',
    'yarn', 'none', 'llama', 'gpt2', 'smollm', 'x' * 5000,
)  # fmt: skip


def changed_field(rng: random.Random, data: bytes, names: list[bytes]) -> bytes:
    """The bytes behind a name, which are type and value of a field or sides, type and place of a
    tensor, are others.
    """
    found, name = bytearray(data), rng.choice(names)
    at = data.find(name) + len(name)
    match rng.randrange(6):
        case 0:  # the type, or the number of sides
            found[at : at + 4] = rng.choice((*range(14), 255, 2**31, 2**32 - 1)).to_bytes(
                4, 'little'
            )
        case 1:  # the value
            found[at + 4 : at + 8] = (rng.choice(SIZES) % 2**32).to_bytes(4, 'little')
        case 2:
            found[at + 4 : at + 12] = rng.choice(SIZES).to_bytes(8, 'little')
        case 3:  # what follows: of an array its length, of a tensor its type or place
            at += rng.choice((8, 12, 16, 20, 24, 28))
            found[at : at + 8] = rng.choice(SIZES).to_bytes(8, 'little')
        case 4:  # the name, or its length
            at = data.find(name) - rng.choice((0, 8))
            found[at : at + 8] = rng.choice(
                (rng.randbytes(8), rng.choice(SIZES).to_bytes(8, 'little'))
            )
    return bytes(found)


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> tuple[pathlib.Path, str]:
    file = own / 'model.gguf'
    if rng.random() < 0.5:  # a file that is whole, and says something odd
        fields = {rng.choice(FIELDS): rng.choice(VALUES) for _ in range(rng.choice((1, 1, 2, 3)))}
        write_gguf(
            file,
            bos=rng.choice((None, 3)),
            factors=rng.choice((None, [1.0, 8.0], [0.0, 1.0], [1.0] * 5, [])),
            fields=fields,
        )
        return file, f'{fields}'[:300]
    source = rng.choice(sorted(good.glob('*.gguf')))
    names = source.with_suffix('.txt').read_bytes().splitlines()
    data = source.read_bytes()
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        data = (
            changed_field(rng, data, names)
            if rng.random() < 0.7
            else changed_bytes(rng, data, near=2000)
        )
    file.write_bytes(data)
    return file, f'{source.name}, damaged'


def read(given: tuple[pathlib.Path, str]) -> None:
    found = load_pretrained(given[0])
    if found.tokenizer is not None:
        found.tokenizer.decode(found.tokenizer.encode('abba d').ids)
    jax.clear_caches()


TARGET = Target(make=make, read=read, prepare=prepare, show=lambda given: given[1])
