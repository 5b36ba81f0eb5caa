"""Files of public checkpoints that are damaged, or that say what no checkpoint says: one line with
file and field for each.
"""

import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file

from benchmarks.fuzz.safetensors import CONFIGS
from benchmarks.fuzz.target import problem
from posenc_jax.lab.pretrained import PretrainedError, is_pretrained, load_pretrained
from posenc_jax.lab.pretrained.architectures import describe
from posenc_jax.lab.pretrained.config_fields import ATTENTION, FIELDS, ROPE
from posenc_jax.lab.pretrained.sources import open_source
from posenc_jax.lab.pretrained.stored import Safetensors
from tests.lab.pretrained.load_test import change, write_gguf

INDEX = 'model.safetensors.index.json'


def refusal(call, *args, error=PretrainedError):
    """The message of an error, which is one readable line."""
    with pytest.raises(error) as found:
        call(*args)
    assert problem(found.value) is None
    return str(found.value)


def split(llama):
    """The tensors in `part.safetensors`, with an index."""
    tensors = sorted(load_file(llama / 'model.safetensors'))
    (llama / 'model.safetensors').rename(llama / 'part.safetensors')
    return {'weight_map': dict.fromkeys(tensors, 'part.safetensors')}


@pytest.mark.parametrize(
    'name',
    [
        '../other/part.safetensors',
        '/etc/passwd',
        '..',
        '.',
        '',
        'a/b',
        'x' * 300,
        '漢' * 100,
        'a\0b',
        'a\nb',
        'part.safetensors/',
        3,
        None,
    ],
)
def test_an_index_names_files_beside_it(llama, name):
    index = split(llama)
    index['weight_map']['model.norm.weight'] = name
    (llama / INDEX).write_text(json.dumps(index))
    message = refusal(open_source, llama)
    assert message.startswith(f"{llama / INDEX}: weight_map['model.norm.weight']=")
    assert message.endswith(f'expected the name of a file in {llama}')


def test_a_file_of_a_checkpoint_may_be_a_link_to_anywhere(llama, tmp_path):
    """As in the cache of Hugging Face, whose snapshots are links to files named by their digest."""
    index = split(llama)
    (tmp_path / 'blobs').mkdir()
    (llama / 'part.safetensors').rename(tmp_path / 'blobs' / '0a1b')
    (llama / 'part.safetensors').symlink_to('../blobs/0a1b')
    (llama / INDEX).write_text(json.dumps(index))
    assert open_source(llama).shapes()['model.norm.weight'] == (24,)


@pytest.mark.parametrize('file', ['config.json', 'generation_config.json', INDEX, 'tokenizer.json'])
@pytest.mark.parametrize(
    'data, expected',
    [
        (b'[' * 20_000 + b']' * 20_000, 'is nested too deep'),
        (b'{"a":' * 20_000 + b'1' + b'}' * 20_000, 'is nested too deep'),
        (b'\xff', 'is not JSON'),
        (b'1' * 5000, 'is not JSON'),
        (b'[]', 'holds a list, expected an object'),
    ],
    ids=['lists', 'objects', 'bytes', 'digits', 'list'],
)
def test_json_that_is_none(llama, file, data, expected):
    (llama / file).write_bytes(data)
    assert f'{llama / file} {expected}' in refusal(lambda: open_source(llama).tokenizer())


def test_json_has_a_largest_size(llama, monkeypatch):
    monkeypatch.setattr('posenc_jax.lab.pretrained.fields.LARGEST_JSON', 100)
    assert 'config.json has' in refusal(open_source, llama) and 'expected at most 100' in refusal(
        open_source, llama
    )


def test_names_that_no_file_has(tmp_path):
    for name in ('x' * 300, '~nobody-of-that-name/model', 'a\0b'):
        assert not is_pretrained(tmp_path / name) and not is_pretrained(name)
        assert 'no such checkpoint' in refusal(open_source, name, error=FileNotFoundError)


NO_NUMBERS = (
    True,
    '1',
    [1],
    {'a': [1]},
    float('nan'),
    float('inf'),
    -1,
    10**400,
    -1e-300,
    1e300,
    [[[[[1]]]]],
    'x' * 5000,
)


@pytest.mark.parametrize('kind', CONFIGS)
def test_every_number_of_every_architecture_has_a_range(kind):
    """Those that a config has and those that it may have."""
    config = CONFIGS[kind]
    describe(config, 'config.json')
    numbers = {(name,): expected for name, expected in FIELDS.items() if 'number' in expected.says}
    inside = {'rope_scaling': ROPE, 'rope_parameters': ROPE, 'attn_config': ATTENTION}
    numbers |= {
        (o, name): expected
        for o, kinds in inside.items()
        for name, expected in kinds.items()
        if 'number' in expected.says
    }
    assert len(numbers) > 50
    for (*outer, name), expected in numbers.items():
        odd = () if 'a list' in expected.says or 'mscale' in name else (1e-300,)
        for value in (*NO_NUMBERS, *odd, *((2**31, 2.5) if 'a whole' in expected.says else ())):
            if 'a list' in expected.says and value == [1]:
                continue
            said = {
                **config,
                **(
                    {outer[0]: {**config.get(outer[0], {}), name: value}}
                    if outer
                    else {name: value}
                ),
            }
            assert f'config.json: {".".join([*outer, name])}=' in refusal(
                describe, said, 'config.json'
            ), (name, value)


@pytest.mark.parametrize('kind', CONFIGS)
def test_a_field_that_is_missing_is_named(kind):
    for name in CONFIGS[kind].keys() - {'model_type'}:
        rest = {field: value for field, value in CONFIGS[kind].items() if field != name}
        for config in (rest, {**rest, name: None}):
            try:
                describe(config, 'config.json')
            except PretrainedError as error:
                assert problem(error) is None and 'config.json: ' in str(error)


def test_sizes_are_those_of_the_file_before_anything_is_built(llama, monkeypatch):
    monkeypatch.setattr(
        'posenc_jax.lab.pretrained.load.Transformer', None
    )  # which is called to build one
    for name, value in (
        ('vocab_size', 2**24),
        ('hidden_size', 2**20),
        ('num_hidden_layers', 2**12),
        ('num_attention_heads', 2**14),
    ):
        change(llama, **{name: value})
        assert 'tensor' in refusal(load_pretrained, llama), name
        change(llama, vocab_size=13, hidden_size=24, num_hidden_layers=2, num_attention_heads=3)


def headed(header, data=bytes(64)):
    header = json.dumps(header).encode() if isinstance(header, dict) else header
    return struct.pack('<Q', len(header)) + header + data


def entry(begin=0, end=64, dtype='F32', shape=(16,)):
    return {'dtype': dtype, 'shape': shape, 'data_offsets': [begin, end]}


@pytest.mark.parametrize(
    'message, data',
    {
        'damaged or not a safetensors file .0 bytes.: its header would have 0 bytes': b'',
        'its header would have 0 bytes': b'1234567',
        (
            r'\(10 bytes\): its header would have 9223372036854775808 bytes, expected 2 to 2'
        ): struct.pack('<Q', 2**63) + b'{}',
        'the header holds a list': headed(b'[]'),
        'the header is nested too deep': headed(b'{"a":' * 20_000 + b'1' + b'}' * 20_000),
        "the tensor 'a'=3, expected an object": headed({'a': 3}),
        "the tensor 'a', dtype='F31', expected 'F64' or 'F32'": headed({'a': entry(dtype='F31')}),
        (
            r"the tensor 'a', data_offsets=\[0, 64\], expected 18446744073709551616 bytes for F32"
        ): headed({'a': entry(shape=(2**31, 2**31))}),
        r"the tensor 'a', shape=\[-4, -4\], expected": headed({'a': entry(shape=(-4, -4))}),
        "the tensor 'a', shape=": headed({'a': entry(shape=(True,) * 9)}),
        r"the tensor 'a', data_offsets=\[0, 60\], expected 64 bytes for F32 \(16,\)": headed(
            {'a': entry(end=60)}
        ),
        "the tensor 'a', data_offsets=": headed({'a': entry(0, 2**63)}),
        r"the tensor 'b' lies at bytes \d+ to \d+, expected it at byte \d+, where 'a' ends": headed(
            {'a': entry(), 'b': entry()}
        ),
        (
            r"the tensor 'a' lies at bytes \d+ to \d+, expected it at byte \d+, where the header "
            r'ends'
        ): headed({'a': entry(32, 96)}, bytes(96)),
        (
            r"the tensor 'a' lies at bytes \d+ to \d+, expected it within the \d+ bytes of the "
            r'file'
        ): headed({'a': entry()}, bytes(63)),
        'expected .* where the last tensor ends': headed({'a': entry()}, bytes(65)),
    }.items(),
)
def test_headers_of_safetensors(tmp_path, data, message):
    (tmp_path / 'a.safetensors').write_bytes(data)
    with pytest.raises(PretrainedError, match=f'a.safetensors.*{message}'):
        Safetensors(tmp_path / 'a.safetensors')


def test_tensors_are_those_that_the_library_reads(llama):
    for name, array in load_file(llama / 'model.safetensors').items():
        found = Safetensors(llama / 'model.safetensors').read(name)
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array)


@pytest.fixture(scope='module')
def gguf(tmp_path_factory):
    pytest.importorskip('gguf')
    return write_gguf(tmp_path_factory.mktemp('gguf') / 'a.gguf', bos=3).read_bytes()


def behind(name, skip, value):
    """Other bytes behind the name of a field (type, value) or of a tensor (number of sides, sides,
    type, place).
    """

    def act(data):
        at = data.index(name) + len(name) + skip
        return data[:at] + value + data[at + len(value) :]

    return act


u32, u64 = (lambda value, code=code: struct.pack(code, value) for code in ('<I', '<Q'))
TENSOR = b'blk.0.attn_q.weight'


@pytest.mark.parametrize(
    'message, damage',
    {
        'damaged: the first 24 bytes would end at byte 4, behind the 0 bytes of the file': (
            lambda data: b''
        ),
        "not a GGUF file .* begins with b'GGML'": lambda data: b'GGML' + data[4:],
        'version 1, expected 2 or 3': lambda data: data[:4] + u32(1) + data[8:],
        r'version 50331648 \(big-endian\), expected 2 or 3, little-endian': lambda data: (
            data[:4] + b'\0\0\0\3' + data[8:]
        ),
        'counts 2147483648 tensors, expected at most 65536': lambda data: (
            data[:8] + u64(2**31) + data[16:]
        ),
        'counts 9223372036854775808 fields': lambda data: data[:16] + u64(2**63) + data[24:],
        'is damaged: the ': lambda data: data[:16] + u64(500) + data[24:],
        'the name of field 0 has a text of 1099511627776 bytes': lambda data: (
            data[:24] + u64(2**40) + data[32:]
        ),
        "the field 'llama.block_count' is of type 99, expected 0 to 12": behind(
            b'llama.block_count', 0, u32(99)
        ),
        'llama.block_count=2147483648, expected a whole number from 1 to 4096': behind(
            b'llama.block_count', 4, u32(2**31)
        ),
        'llama.block_count=1.4.*e-45, expected a whole number': behind(
            b'llama.block_count', 0, u32(6)
        ),
        'llama.attention.head_count=2147483647, expected a whole number from 1 to 16384': behind(
            b'head_count', 4, u32(2**31 - 1)
        ),
        'layer_norm_rms_epsilon=nan, expected a number from 1e-30 to 1': behind(
            b'rms_epsilon', 4, struct.pack('<f', np.nan)
        ),
        (
            "the field 'tokenizer.ggml.tokens' is of type 9, expected 0 to 12, and no array "
            'within an array'
        ): behind(b'ggml.tokens', 4, u32(9)),
        "the field 'tokenizer.ggml.tokens' has 1152921504606846976 texts": behind(
            b'ggml.tokens', 8, u64(2**60)
        ),
        "the field 'tokenizer.ggml.token_type' would end at byte": behind(
            b'token_type', 8, u64(2**60)
        ),
        "the field 'tokenizer.ggml.token_type' has a text of": behind(b'token_type', 4, u32(8)),
        "the field 'tokenizer.ggml.model' has a text that is not UTF-8": behind(
            b'ggml.model', 12, b'\xff'
        ),
        "the tensor 'blk.0.attn_q.weight' has 2147483648 dimensions, expected 1 to 4": behind(
            TENSOR, 0, u32(2**31)
        ),
        "the tensor 'blk.0.attn_q.weight' has 0 dimensions, expected 1 to 4": behind(
            TENSOR, 0, u32(0)
        ),
        r"the tensor 'blk.0.attn_q.weight', shape=\[9223372036854775808, 8\]": behind(
            TENSOR, 4, u64(2**63)
        ),
        "the tensor 'blk.0.attn_q.weight' lies at bytes .* expected it within": behind(
            TENSOR, 4, u64(2**31)
        ),
        "the tensor 'blk.0.attn_q.weight' is of type 77, expected a known one": behind(
            TENSOR, 20, u32(77)
        ),
        (
            "the tensor 'blk.0.attn_q.weight' has rows of 8, expected a multiple of 32 for Q4_0"
        ): behind(TENSOR, 20, u32(2)),
        'lies at bytes .*, expected it at byte': behind(TENSOR, 24, u64(64)),
        r'lies at bytes \d+ to \d+, expected it at byte': behind(TENSOR, 24, u64(2**63)),
        "has the tensor 'blk.0.attn_q.weight' twice": lambda data: data.replace(
            b'blk.0.attn_k.weight', TENSOR
        ),
        "lacks the field 'llama.context_length'": lambda data: data.replace(
            b'llama.context_length', b'llama.embedding_leng'
        ),
        'expected it within the': lambda data: data[:-200],
    }.items(),
)
def test_headers_of_gguf(gguf, tmp_path, damage, message):
    (tmp_path / 'a.gguf').write_bytes(damage(gguf))
    with pytest.raises(PretrainedError, match=f'a.gguf.*{message}') as found:
        load_pretrained(tmp_path / 'a.gguf')
    assert problem(found.value) is None


def test_fields_and_tensors_are_those_that_the_library_reads(gguf, tmp_path):
    import gguf as library

    from posenc_jax.lab.pretrained.gguf_header import Header
    from posenc_jax.lab.pretrained.stored import read_bytes

    (file := tmp_path / 'a.gguf').write_bytes(gguf)
    theirs, ours = library.GGUFReader(file), Header(file)
    assert ours.fields == {
        key: field.contents() for key, field in theirs.fields.items() if not key.startswith('GGUF.')
    }
    assert {name: tensor.shape for name, tensor in ours.tensors.items()} == {
        t.name: tuple(map(int, t.shape[::-1])) for t in theirs.tensors
    }
    for tensor in theirs.tensors:
        np.testing.assert_array_equal(
            read_bytes(file, ours.tensors[tensor.name]),
            np.asarray(tensor.data).view(np.uint8).ravel(),
        )
