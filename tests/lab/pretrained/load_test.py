"""Checkpoints that our own export wrote, whole and damaged; declared scalings as spec strings."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.pretrained import PretrainedError, export_pretrained, load_pretrained
from posenc_jax.lab.pretrained.scaling import rope_spec, trained_length
from posenc_jax.lab.pretrained.sources import open_source
from posenc_jax.lab.pretrained.special_tokens import special_ids
from posenc_jax.lab.tasks.language.vocabulary import Tokens
from tests.smollm2 import needs_smollm2, smollm2

LLAMA = dict(
    vocab_size=13,
    train_len=16,
    layers=2,
    width=24,
    heads=3,
    kv_heads=1,
    mlp='swiglu',
    mlp_width=20,
    encoding='rope()',
)
GPT2 = dict(
    vocab_size=13, train_len=16, layers=2, width=24, heads=3, norm='layernorm', bias='all',
    tie=True, embedding_scale=1.0,
    encoding='learned_absolute(max_len=16)',
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(0), (2, 12), 0, 13)


def model_of(**fields):
    return Transformer(TransformerConfig(**fields), rngs=nnx.Rngs(0))


def change(path, **fields):
    file = path / 'config.json'
    config = {**json.loads(file.read_text()), **fields}
    file.write_text(
        json.dumps({name: value for name, value in config.items() if value is not None})
    )


def test_shards_are_read_like_one_file(llama):
    whole = load_pretrained(llama).model(TOKENS)
    tensors = load_file(llama / 'model.safetensors')
    names = sorted(tensors)
    parts = {'model-1.safetensors': names[:5], 'model-2.safetensors': names[5:]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, llama / file)
    (llama / 'model.safetensors').unlink()
    index = {'weight_map': {name: file for file, own in parts.items() for name in own}}
    (llama / 'model.safetensors.index.json').write_text(json.dumps(index))
    np.testing.assert_array_equal(load_pretrained(llama).model(TOKENS), whole)
    (llama / 'model-2.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='model-2.safetensors is missing'):
        load_pretrained(llama)


def test_an_extension_replaces_the_declared_scaling(llama):
    change(llama, rope_scaling={'rope_type': 'linear', 'factor': 4.0})
    model = load_pretrained(llama).model
    assert model.cfg.encoding == 'rope(base=10000.0, freqs=pi(factor=4.0))'
    plain = model_of(**LLAMA)
    np.testing.assert_allclose(
        model.extend('ntk_aware(factor=1.0)')(TOKENS), plain(TOKENS), atol=2e-5
    )


def test_bfloat16_weights_are_read(llama):
    import ml_dtypes

    exact = load_pretrained(llama).model(TOKENS)
    tensors = {
        name: a.astype(ml_dtypes.bfloat16)
        for name, a in load_file(llama / 'model.safetensors').items()
    }
    save_file(tensors, llama / 'model.safetensors')
    np.testing.assert_allclose(load_pretrained(llama).model(TOKENS), exact, atol=0.1)


def test_weights_land_in_the_layout_of_the_mesh(llama):
    from posenc_jax.layer.sharding import make_mesh

    mesh = make_mesh(data=1, devices=jax.devices()[:1])
    weight = load_pretrained(llama, mesh=mesh).model.blocks[0].mlp.w_in[...]
    assert weight.sharding.mesh == mesh and weight.sharding.spec == jax.sharding.PartitionSpec(
        None, 'fsdp', 'tensor'
    )


def changed(**fields):
    return lambda path: change(path, **fields)


def drop(name):
    def act(path):
        tensors = load_file(path / 'model.safetensors')
        del tensors[name]
        save_file(tensors, path / 'model.safetensors')

    return act


def add(name, shape):
    def act(path):
        save_file(
            {**load_file(path / 'model.safetensors'), name: np.zeros(shape, np.float32)},
            path / 'model.safetensors',
        )

    return act


def put(name, value, dtype=np.float32):
    def act(path):
        tensors = load_file(path / 'model.safetensors')
        tensors[name].flat[-1] = value
        save_file({**tensors, name: tensors[name].astype(dtype)}, path / 'model.safetensors')

    return act


def truncate(path):
    file = path / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:-100])


def surplus_in_a_shard(path):
    tensors = load_file(path / 'model.safetensors')
    save_file({**tensors, 'stray': np.zeros(2, np.float32)}, path / 'model-1.safetensors')
    (path / 'model.safetensors').unlink()
    index = {'weight_map': dict.fromkeys(tensors, 'model-1.safetensors')}
    (path / 'model.safetensors.index.json').write_text(json.dumps(index))


UP, SURPLUS = (f'model.layers.{layer}.mlp.up_proj.weight' for layer in (1, 2))


def put_tokenizer(size, begin=None):
    """A tokenizer of some words; with `begin`, a token of this id stands in front of a text."""

    def act(path):
        from tokenizers import Tokenizer, models, processors

        tokenizer = Tokenizer(models.WordLevel({str(i): i for i in range(size)}, unk_token='0'))
        if begin is not None:
            tokenizer.post_processor = processors.TemplateProcessing(
                single='<s> $A', special_tokens=[('<s>', begin)]
            )
        tokenizer.save(str(path / 'tokenizer.json'))

    return act


FINITE = 'expected finite numbers of 32 bits'
DAMAGED = {  # message -> what is done to the folder; wrong configs are in architectures_test.py
    (
        "config.json: unknown architecture 'lama'; supported: llama, mistral, .*; the nearest is "
        "'llama'"
    ): changed(model_type='lama'),
    r'proj.weight. has shape .*20.*, expected .*21': changed(intermediate_size=21),
    rf"lacks the tensor '{UP}' \(20, 24\)": drop(UP),
    rf"has a tensor '{SURPLUS}' \(20, 24\)": add(SURPLUS, (20, 24)),
    rf"model.safetensors: the tensor '{UP}' holds nan, {FINITE}": put(UP, np.nan),
    f"'{UP}' holds -inf, expected finite": put(UP, -np.inf, np.float16),
    f"model.safetensors: the tensor '{UP}' is of type int8, expected floating point": put(
        UP, 1, np.int8
    ),
    (
        r'model.safetensors: the tensor .* lies at bytes \d+ to \d+, expected it within the '
        r'\d+ bytes of the file'
    ): truncate,
    "has a tensor 'stray' that model.safetensors.index.json does not list": surplus_in_a_shard,
    'the tokenizer has ids up to 19, the vocabulary of the model ends at 12': put_tokenizer(20),
    'the tokenizer has ids up to 14, the vocabulary of the model ends at 12': put_tokenizer(1, 14),
    'config.json: eos_token_id=None, expected a token in 0 .. 12': changed(eos_token_id=[None]),
    'config.json: eos_token_id=13, expected a token in 0 .. 12': changed(eos_token_id=[2, 13]),
    'generation_config.json: eos_token_id=13, expected a token in 0 .. 12': lambda path: (
        path / 'generation_config.json'
    ).write_text('{"eos_token_id": 13}'),
    'config.json is not JSON': lambda path: (path / 'config.json').write_text('{'),
}


@pytest.mark.parametrize('message', DAMAGED)
def test_damage_is_named(llama, message):
    DAMAGED[message](llama)
    with pytest.raises(ValueError, match=message):
        load_pretrained(llama)


def test_special_tokens_that_stand_for_none(llama, tmp_path):
    """What nothing reads may lie behind the table, as the padding of Llama 2 does; `transformers`
    gives every GPT-2 the last token of the published one.
    """
    change(llama, pad_token_id=13, bos_token_id=-1, eos_token_id=[1, 2])
    gpt2 = export_pretrained(model_of(**GPT2), tmp_path / 'gpt2')
    change(gpt2, bos_token_id=50256, eos_token_id=50256)
    found = [load_pretrained(path).config for path in (llama, gpt2)]
    assert [special_ids('eos_token_id', config, config) for config in found] == [(1, 2), ()]


def change_tensors(path, change):
    file = path / 'model.safetensors'
    save_file(change(load_file(file)), file)


def test_a_gpt2_as_it_is_published(tmp_path):
    """Of the base model, without the first part of the names, with the mask as a buffer, and of
    another activation.
    """
    path = export_pretrained(model_of(**GPT2), tmp_path / 'gpt2')
    logits = lambda: np.asarray(load_pretrained(path).model(TOKENS))
    expected, mask = logits(), np.tril(np.ones((1, 1, 16, 16), np.float32))
    masks = {f'h.{layer}.attn.bias': mask for layer in range(2)}
    change_tensors(
        path,
        lambda found: {name.removeprefix('transformer.'): w for name, w in found.items()} | masks,
    )
    np.testing.assert_array_equal(logits(), expected)
    change(path, activation_function='gelu_pytorch_tanh')
    np.testing.assert_array_equal(logits(), expected)
    change(path, activation_function='gelu')
    assert 1e-6 < np.abs(logits() - expected).max() < 0.1
    change(path, activation_function='gelu_pytorch')
    with pytest.raises(
        PretrainedError,
        match="activation_function='gelu_pytorch'; did you mean 'gelu_pytorch_tanh'",
    ):
        logits()


def test_an_output_of_its_own_where_tables_are_shared_as_a_rule(tmp_path):
    path = export_pretrained(model_of(**GPT2), tmp_path / 'gpt2')
    tied = np.asarray(load_pretrained(path).model(TOKENS))
    head = np.asarray(jax.random.normal(jax.random.key(1), (13, 24)))
    change_tensors(path, lambda found: found | {'lm_head.weight': head})
    np.testing.assert_array_equal(
        load_pretrained(path).model(TOKENS), tied
    )  # `transformers` too reads none where they are shared
    change(path, tie_word_embeddings=False)
    model = load_pretrained(path).model
    np.testing.assert_array_equal(model.output[...], head.T)
    assert np.abs(model(TOKENS) - tied).max() > 0.1
    change_tensors(
        path, lambda found: {name: w for name, w in found.items() if name != 'lm_head.weight'}
    )
    with pytest.raises(PretrainedError, match="lacks the tensor 'lm_head.weight'"):
        load_pretrained(path)


def test_the_dynamic_rule_counts_from_the_declared_length():
    """As in `transformers`, which reads no original length for it."""
    config = {
        'rope_scaling': {'type': 'dynamic', 'factor': 2.0, 'original_max_position_embeddings': 8},
        'max_position_embeddings': 16,
    }
    assert (
        rope_spec(config, 'here')
        == 'rope(base=10000.0, freqs=dynamic_ntk(factor=2.0, train_len=16))'
    )


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(FileNotFoundError, match='no such checkpoint'):
        load_pretrained(tmp_path / 'none')
    with pytest.raises(FileNotFoundError, match='config.json is missing'):
        load_pretrained(tmp_path)
    (tmp_path / 'tiny.gguf').write_bytes(b'x')
    with pytest.raises(FileNotFoundError, match=r'tiny2.gguf; did you mean .*/tiny.gguf\?$'):
        load_pretrained(tmp_path / 'tiny2.gguf')
    (tmp_path / 'model.bin').write_bytes(b'x')
    with pytest.raises(PretrainedError, match='neither a directory with config.json nor a .gguf'):
        load_pretrained(tmp_path / 'model.bin')
    pytest.importorskip('gguf')
    (tmp_path / 'model.gguf').write_bytes(b'GGUF\x03\x00\x00\x00' + b'\x00' * 40)
    with pytest.raises(PretrainedError, match='model.gguf'):
        load_pretrained(tmp_path / 'model.gguf')


@pytest.mark.parametrize(
    'spec, config',
    {
        'rope(base=500000.0)': {'rope_theta': 5e5},
        'rope(base=10000.0, freqs=yarn(factor=4.0, train_len=16))': {
            'rope_scaling': {
                'rope_type': 'yarn',
                'factor': 4.0,
                'original_max_position_embeddings': 16,
                'mscale_all_dim': 0,
            }
        },
        'rope(base=10000.0, partial=0.25)': {'rotary_pct': 0.25},
        'rope(base=10000.0, freqs=p_rope(p=0.5))': {
            'rope_parameters': {
                'rope_type': 'proportional',
                'rope_theta': 1e4,
                'partial_rotary_factor': 0.5,
            }
        },
        'rope(base=10000.0, freqs=dynamic_ntk(factor=2.0, train_len=64))': {
            'rope_scaling': {'type': 'dynamic', 'factor': 2.0, 'finetuned': True, 'beta_fast': None}
        },
        'rope(base=10000.0, freqs=yarn(factor=4.0, train_len=16, beta_fast=32.0))': {
            'rope_scaling': {
                'rope_type': 'yarn',
                'factor': 4.0,
                'original_max_position_embeddings': 16,
                'beta_fast': 32,
            }
        },
    }.items(),
)
def test_declared_scalings_as_spec_strings(config, spec):
    config = {'max_position_embeddings': 64, **config}
    assert rope_spec(config, 'here') == spec
    assert trained_length(config) == (16 if 'yarn' in spec else 64)


@needs_smollm2
@pytest.mark.full
def test_smollm2_has_the_published_logits_and_tokens():
    """The figures of the data sheet, from another implementation; its query and key rows are stored
    for the other layout.
    """
    from posenc_jax.lab.decoding.generate import generate

    pytest.importorskip('gguf')
    found = load_pretrained(smollm2())
    tokens = found.tokenizer.encode('The capital of France is').ids
    assert tokens == [504, 3575, 282, 4649, 314]
    assert found.tokenizer.encode('In 1492, Columbus sailed').ids == [
        788,
        216,
        33,
        36,
        41,
        34,
        28,
        18176,
        23217,
    ]
    logits = found.model(jnp.asarray([tokens]))[0]
    assert jnp.argmax(logits, -1).tolist() == [29, 282, 260, 314, 7042]
    np.testing.assert_allclose(
        logits[-1][jnp.asarray([7042, 260, 4528, 2250, 1315])],
        [17.371, 14.889, 13.245, 13.009, 12.952],
        atol=5e-3,
    )
    assert jax.nn.logsumexp(logits[-1]) == pytest.approx(17.6293, abs=5e-3)
    new = generate(found.model, jnp.asarray([tokens]), max_new_tokens=16, temperature=0.0)[
        0, 5:
    ].tolist()
    assert new == [7042, 30, 198, 198, 504, 2988, 314, 42, 216, 34, 32, 33, 40, 29, 32, 33]
    assert found.tokenizer.decode(new).startswith(' Paris.\n\nThe answer is')


FIELDS = {
    'llama.context_length': 32,
    'llama.embedding_length': 8,
    'llama.block_count': 1,
    'llama.feed_forward_length': 12,
    'llama.attention.head_count': 2,
    'llama.attention.layer_norm_rms_epsilon': 1e-5,
    'llama.rope.freq_base': 1e4,
    'tokenizer.ggml.tokens': ['a', 'b', 'ab', 'd'],
    'tokenizer.ggml.token_type': [1] * 4,
    'tokenizer.ggml.merges': ['a b'],
}
SHAPES = {
    **{f'blk.0.attn_{name}': (8, 8) for name in ('q', 'k', 'v', 'output')},
    **{'blk.0.ffn_gate': (12, 8), 'blk.0.ffn_up': (12, 8), 'blk.0.ffn_down': (8, 12)},
    **{'blk.0.attn_norm': (8,), 'blk.0.ffn_norm': (8,), 'token_embd': (4, 8)},
}


def write_gguf(path, model='gpt2', factors=None, bos=None, norm=np.ones(8, np.float32), fields=()):
    """A llama file of one layer with four tokens."""
    import gguf

    writer, rng = gguf.GGUFWriter(path, 'llama'), np.random.default_rng(0)
    kinds = ('bool', 'bool'), ('int', 'uint32'), ('float', 'float32'), ('str', 'string')
    add = {kind: getattr(writer, f'add_{name}') for kind, name in (*kinds, ('list', 'array'))}
    begin = {'tokenizer.ggml.bos_token_id': bos, 'tokenizer.ggml.add_bos_token': True}
    own = {**FIELDS, 'tokenizer.ggml.model': model, **({} if bos is None else begin)}
    for name, value in {**own, **dict(fields)}.items():
        add[type(value).__name__](name, value)
    for name, shape in SHAPES.items():
        writer.add_tensor(f'{name}.weight', rng.normal(size=shape).astype(np.float32))
    writer.add_tensor('output_norm.weight', norm)
    if factors is not None:
        writer.add_tensor('rope_freqs.weight', np.asarray(factors, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_factors_in_a_gguf_file_divide_the_frequencies(tmp_path):
    pytest.importorskip('gguf')
    plain = load_pretrained(write_gguf(tmp_path / 'plain.gguf')).model
    ones = load_pretrained(write_gguf(tmp_path / 'ones.gguf', factors=[1.0, 1.0])).model
    found = load_pretrained(write_gguf(tmp_path / 'scaled.gguf', factors=[1.0, 8.0])).model
    assert plain.cfg.encoding == ones.cfg.encoding == 'rope(base=10000.0)'
    (part,) = [part for part in found.shared if hasattr(part, 'frequencies')]
    inv_freq, m = part.frequencies(jnp.array([[7]]))
    np.testing.assert_allclose(
        np.broadcast_to(inv_freq, (1, 1, 2))[0, 0], [1.0, 0.01 / 8], rtol=1e-6
    )
    assert np.all(np.asarray(m) == 1.0)


@pytest.mark.parametrize(
    'message, norm',
    {
        "bad.gguf: the tensor 'model.norm.weight' holds nan, expected finite": np.full(
            8, np.nan, np.float16
        ),
        "bad.gguf: the tensor 'model.norm.weight' is of type I8, expected e.g. F32": np.ones(
            8, np.int8
        ),
    }.items(),
)
def test_weights_of_a_gguf_file_are_finite_floats(norm, message, tmp_path):
    pytest.importorskip('gguf')
    with pytest.raises(PretrainedError, match=message):
        load_pretrained(write_gguf(tmp_path / 'bad.gguf', norm=norm))


def test_special_tokens_of_a_gguf_file(tmp_path):
    pytest.importorskip('gguf')
    open_source(
        write_gguf(tmp_path / 'none.gguf', fields={'tokenizer.ggml.padding_token_id': 2**32 - 1})
    )
    open_source(write_gguf(tmp_path / 'unused.gguf', fields={'tokenizer.ggml.bos_token_id': 4}))
    for name, begins in (('eos', False), ('bos', True)):
        fields = {f'tokenizer.ggml.{name}_token_id': 4, 'tokenizer.ggml.add_bos_token': begins}
        with pytest.raises(
            PretrainedError, match=rf'bad.gguf: {name}_token_id=4, expected a token in 0 .. 3'
        ):
            open_source(write_gguf(tmp_path / 'bad.gguf', fields=fields))


def gguf_scaling(factor=2.0, **fields):
    named = dict(fields, factor=factor).items()
    return {f'llama.rope.scaling.{name}': value for name, value in named}


@pytest.mark.parametrize(
    'fields, spec',
    [
        (gguf_scaling(type='linear'), 'pi(factor=2.0)'),
        (gguf_scaling(), 'pi(factor=2.0)'),
        ({'llama.rope.scale_linear': 2.0}, 'pi(factor=2.0)'),
        (gguf_scaling(type='none'), ''),
        (
            gguf_scaling(
                type='yarn', original_context_length=16, yarn_beta_fast=8.0, yarn_ext_factor=1.0
            ),
            'yarn(factor=2.0, train_len=16, beta_fast=8.0)',
        ),
    ],
)
def test_the_scaling_a_gguf_file_declares(fields, spec, tmp_path):
    pytest.importorskip('gguf')
    config = open_source(write_gguf(tmp_path / 'a.gguf', fields=fields)).config
    assert rope_spec(config, 'here') == f'rope(base=10000.0{spec and ", freqs="}{spec})'


def test_factors_beside_a_linear_scaling_are_multiplied(tmp_path):
    pytest.importorskip('gguf')
    both = open_source(
        write_gguf(tmp_path / 'both.gguf', factors=[1.0, 8.0], fields=gguf_scaling(type='linear'))
    ).config
    assert (
        both['rope_scaling']['long_factor'] == both['rope_scaling']['short_factor'] == [2.0, 16.0]
    )


@pytest.mark.parametrize(
    'message, fields',
    {
        (
            "bad.gguf: rope scaling of type 'yarn' together with rope_freqs.weight, expected "
            'linear or none'
        ): gguf_scaling(type='yarn'),
        'bad.gguf: llama.rope.scaling.attn_factor=2.0 is not supported': gguf_scaling(
            attn_factor=2.0
        ),
        (
            "bad.gguf: llama.rope.scaling.facotr=1.0 is not supported; did you mean 'factor'"
        ): gguf_scaling(facotr=1.0),
        "bad.gguf: rope scaling of type 'linear' lacks the field llama.rope.scaling.factor": {
            'llama.rope.scaling.type': 'linear'
        },
    }.items(),
)
def test_a_scaling_of_a_gguf_file_that_would_be_dropped_is_refused(fields, message, tmp_path):
    pytest.importorskip('gguf')
    with pytest.raises(PretrainedError, match=message):
        open_source(write_gguf(tmp_path / 'bad.gguf', factors=[1.0, 8.0], fields=fields))


def test_a_text_begins_with_what_the_tokenizer_puts_in_front(tmp_path):
    pytest.importorskip('gguf')
    encoded = {
        bos: Tokens(write_gguf(tmp_path / f'{bos}.gguf', bos=bos)).encode(b'abb').tolist()
        for bos in (None, 3)
    }
    assert encoded == {None: [2, 1], 3: [3, 2, 1]}


def test_a_tokenizer_of_an_unknown_kind_leaves_the_weights_readable(tmp_path):
    pytest.importorskip('gguf')
    found = load_pretrained(write_gguf(tmp_path / 'spm.gguf', model='llama'))
    assert found.tokenizer is None and found.model(jnp.array([[0, 1, 2]])).shape == (1, 3, 4)
    with pytest.raises(PretrainedError, match="byte-level BPE tokenizer .* this one is 'llama'"):
        open_source(tmp_path / 'spm.gguf').tokenizer()
