"""GGUF files of the Qwen and Gemma architectures: tiny random models of `transformers`, written
under the names and keys of llama.cpp by the library `gguf`, have the config and the tensors of
their Hugging Face directory. `transformers` reads the same files.
"""

import pathlib
import unicodedata

import numpy as np
import pytest

from posenc_jax.lab.pretrained.architectures import describe
from posenc_jax.lab.pretrained.load import architecture_of
from posenc_jax.lab.pretrained.sources import PretrainedError, open_source

torch = pytest.importorskip('torch', reason='parity needs torch and transformers')
transformers = pytest.importorskip('transformers', reason='parity needs torch and transformers')
gguf = pytest.importorskip('gguf')

LAYERS, VOCABULARY = 6, 32
SIZES = dict(
    vocab_size=VOCABULARY,
    hidden_size=16,
    num_hidden_layers=LAYERS,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=24,
    max_position_embeddings=64,
    rms_norm_eps=2.0**-17,  # exact in the 32 bits of a file
    pad_token_id=0,
    bos_token_id=2,
    eos_token_id=1,
)
ROPE = {'rope_parameters': {'rope_type': 'default', 'rope_theta': 500.0}}
GEMMA = dict(head_dim=8, sliding_window=9, query_pre_attn_scalar=8)
GEMMA3_ROPE = {
    'full_attention': {'rope_type': 'linear', 'factor': 4.0, 'rope_theta': 500.0},
    'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
}
# architecture of the file -> config class, arguments, and the fields beside the sizes
FILES = {
    'qwen2': ('Qwen2Config', ROPE, {'rope.freq_base': 500.0}),
    'qwen3': (
        'Qwen3Config',
        {**ROPE, 'head_dim': 8, 'tie_word_embeddings': True},
        {'rope.freq_base': 500.0, 'attention.key_length': 8, 'attention.value_length': 8},
    ),
    'gemma2': (
        'Gemma2Config',
        {**GEMMA, 'attn_logit_softcapping': 2.0, 'final_logit_softcapping': 4.0},
        {
            'attention.key_length': 8,
            'attention.value_length': 8,
            'attention.sliding_window': 9,
            'attn_logit_softcapping': 2.0,
            'final_logit_softcapping': 4.0,
        },
    ),
    'gemma3': (
        'Gemma3TextConfig',
        {**GEMMA, 'rope_parameters': GEMMA3_ROPE},
        {
            'attention.key_length': 8,
            'attention.value_length': 8,
            'attention.sliding_window': 9,
            'rope.freq_base': 500.0,
            'rope.scaling.type': 'linear',
            'rope.scaling.factor': 4.0,
        },
    ),
}


def model_of(kind):
    name, own, _ = FILES[kind]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, name)(**{**SIZES, **own})
    )
    with torch.no_grad():  # biases and norms are initialised to zeros and ones
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def write(file: pathlib.Path, kind, model, general=(), **changes):
    """The model as llama.cpp converts it: tensors under its names, in float32, with 1 added to the
    scales of norms of gemma; the heads keep their order.
    """
    writer = gguf.GGUFWriter(file, kind)
    writer.add_context_length(64), writer.add_embedding_length(16)
    writer.add_block_count(LAYERS), writer.add_feed_forward_length(24)
    writer.add_head_count(4), writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(2.0**-17)
    writer.add_tokenizer_model('llama')
    writer.add_token_list([f'{i}' for i in range(VOCABULARY)])
    writer.add_bos_token_id(2), writer.add_eos_token_id(1)
    kinds = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    own = {f'{kind}.{key}': value for key, value in {**FILES[kind][2], **changes}.items()}
    for key, value in {**own, **dict(general)}.items():
        kinds[type(value)](key, value)
    arch = next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
    names = gguf.get_tensor_name_map(arch, LAYERS)
    for name, tensor in model.state_dict().items():
        if name == 'lm_head.weight' and model.config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=('.weight', '.bias'))
        plus = 1.0 if kind.startswith('gemma') and name.endswith('norm.weight') else 0.0
        writer.add_tensor(stored, tensor.numpy() + np.float32(plus))
    writer.write_header_to_file(), writer.write_kv_data_to_file()
    writer.write_tensors_to_file(), writer.close()
    return file


@pytest.mark.parametrize('kind', FILES)
def test_config_and_tensors_are_those_of_the_directory(kind, tmp_path):
    model = model_of(kind)
    model.save_pretrained(tmp_path)
    theirs, ours = open_source(tmp_path), open_source(write(tmp_path / 'a.gguf', kind, model))
    wanted, found = architecture_of(theirs), architecture_of(ours)
    assert found.cfg == wanted.cfg
    assert found.leaves.keys() == wanted.leaves.keys()
    for leaf in wanted.leaves.values():
        for number in range(LAYERS) if '{}' in leaf.name else (None,):
            name = leaf.name.format(number)
            np.testing.assert_allclose(ours.read(name), theirs.read(name), atol=3e-7)


@pytest.mark.full
@pytest.mark.parametrize('kind', FILES)
def test_transformers_reads_the_same_from_these_files(kind, tmp_path):
    model = model_of(kind)
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    file, wanted = write(tmp_path / 'a.gguf', kind, model), model.state_dict()
    read = load_gguf_checkpoint(str(file), return_tensors=True, model_to_load=model)['tensors']
    assert read.keys() >= wanted.keys() - {'lm_head.weight'}
    for name, tensor in read.items():
        np.testing.assert_allclose(tensor, wanted[name].numpy(), atol=3e-7, err_msg=name)


def test_a_file_may_have_a_chat_template(tmp_path):
    model, texts = model_of('qwen2'), {'tokenizer.chat_template': '{{ bos_token }}|{{ eos_token }}'}
    assert open_source(write(tmp_path / 'a.gguf', 'qwen2', model)).chat_template() is None
    source = open_source(write(tmp_path / 'b.gguf', 'qwen2', model, general=texts))
    assert source.chat_template().render([]) == '2|1'  # the tokens are called by their numbers


TEXTS = [
    "I'll pay 12345 DM,\n\n  now\tand   then…",
    'café cafe\u0301  \n x',
    '汉字 and 12 ١٢ !?\r\n',
]


def test_the_tokenizer_of_qwen2_is_that_of_transformers(tmp_path):
    """Every pair of letters of a text that may be joined is, so that the pieces tell."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [(a, b) for a in letters for b in letters]
    tokens = [*letters, *(a + b for a, b in merges), '<|im_end|>']
    theirs = transformers.Qwen2Tokenizer(
        vocab={token: i for i, token in enumerate(tokens)}, merges=merges, unk_token=None
    )
    writer = gguf.GGUFWriter(tmp_path / 'a.gguf', 'qwen2')
    writer.add_context_length(64), writer.add_embedding_length(16), writer.add_block_count(1)
    writer.add_feed_forward_length(24), writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_tokenizer_model('gpt2'), writer.add_tokenizer_pre('qwen2')
    writer.add_token_list(tokens), writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges([' '.join(merge) for merge in merges])
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file()
    writer.close()
    ours = open_source(tmp_path / 'a.gguf').tokenizer()
    for text in TEXTS:
        assert ours.encode(text).ids == theirs.encode(text, add_special_tokens=False)
        assert ours.decode(ours.encode(text).ids) == unicodedata.normalize('NFC', text)


def test_what_a_gemma_file_leaves_out_is_what_llama_cpp_takes(tmp_path):
    """The largest models scale queries by the width over the heads, and no field says so."""
    model, sizes = model_of('gemma2'), {}
    for layers in (LAYERS, 46):
        source = open_source(write(tmp_path / f'{layers}.gguf', 'gemma2', model))
        source._header.fields['gemma2.block_count'] = layers
        sizes[layers] = source._of_gemma()['query_pre_attn_scalar']
    assert sizes == {LAYERS: 8, 46: 4.0}


def test_wrong_files_are_refused(tmp_path):
    model = model_of('qwen3')
    unknown = write(tmp_path / 'a.gguf', 'qwen3', model)
    unknown.write_bytes(unknown.read_bytes().replace(b'qwen3', b'qwen5'))
    with pytest.raises(PretrainedError, match="unknown architecture 'qwen5' .*did you mean 'qwen"):
        open_source(unknown)
    bad = write(tmp_path / 'c.gguf', 'gemma2', model_of('gemma2'), attn_logit_softcapping=0.0)
    with pytest.raises(PretrainedError, match='attn_logit_softcapping=0.0, expected a number'):
        open_source(bad)
    surplus = open_source(write(tmp_path / 'd.gguf', 'qwen3', model))
    surplus.config['model_type'] = 'qwen2'
    with pytest.raises(PretrainedError, match='q_norm|bias'):
        architecture_of(surplus)
    assert describe(open_source(tmp_path / 'd.gguf').config, 'd').cfg.qk_norm == 'head'
