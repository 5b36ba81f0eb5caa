"""What the configs of Qwen3, OLMo 2, SmolLM3 and Gemma say about the layers of a model: defaults of
`transformers`, patterns, and refused values. tests/lab/pretrained/parity_test.py compares whole
models.
"""

import json

import pytest

from posenc_jax.lab.pretrained import load_pretrained
from posenc_jax.lab.pretrained.architectures import ARCHITECTURES, describe
from posenc_jax.lab.pretrained.gpt import mpt_slopes
from posenc_jax.lab.pretrained.sources import PretrainedError

SIZES = dict(
    vocab_size=32,
    hidden_size=16,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    intermediate_size=24,
    max_position_embeddings=64,
    rms_norm_eps=1e-6,
)


def cfg_of(model_type, **fields):
    return describe({'model_type': model_type, **SIZES, **fields}, 'config.json').cfg


def specs(kind, **fields):
    return cfg_of(kind, **fields).specs


ROPE, NOPE = 'rope(base=2000000.0)', 'nope()'


@pytest.mark.parametrize(
    'fields, expected',
    [
        ({}, (ROPE, ROPE, ROPE, NOPE)),
        (dict(no_rope_layer_interval=2), (ROPE, NOPE)),
        (dict(no_rope_layers=[0, 1, 1, 1], no_rope_layer_interval=2), (NOPE, ROPE, ROPE, ROPE)),
        (dict(no_rope_layers=[1] * 4, sliding_window=8), (ROPE,)),
        (
            dict(use_sliding_window=True, sliding_window=8, no_rope_layer_interval=2),
            (ROPE, f'{NOPE} | window(size=8)'),
        ),
        (
            dict(
                use_sliding_window=True,
                sliding_window=8,
                no_rope_layers=[1] * 4,
                layer_types=['sliding_attention', 'full_attention'] * 2,
            ),
            (f'{ROPE} | window(size=8)', ROPE),
        ),
    ],
)
def test_layers_without_rope_and_with_windows_of_smollm3(fields, expected):
    assert specs('smollm3', **fields) == expected


def test_windows_of_qwen3_are_optional():
    assert specs('qwen3', sliding_window=8) == ('rope(base=10000.0)',)
    windows = dict(use_sliding_window=True, sliding_window=8, max_window_layers=2)
    assert [len(spec.split('|')) for spec in specs('qwen3', **windows)] == [1, 1, 2, 2]
    assert cfg_of('qwen3').head_dim == 128  # and not the width over the heads


def test_norms_scales_and_caps():
    qwen3, olmo2, gemma2, gemma3 = (
        cfg_of(kind) for kind in ('qwen3', 'olmo2', 'gemma2', 'gemma3_text')
    )
    of = lambda cfg: (cfg.qk_norm, cfg.norm_place, cfg.mlp, cfg.output_cap, cfg.tie)
    assert of(qwen3) == ('head', 'before', 'swiglu', 0.0, False)
    assert of(olmo2) == ('width', 'after', 'swiglu', 0.0, False)
    assert of(gemma2) == ('none', 'both', 'geglu', 30.0, True)
    assert of(gemma3) == ('head', 'both', 'geglu', 0.0, True)
    assert qwen3.embedding_scale == 1.0 and gemma3.embedding_scale == 4.0  # sqrt of the width


def test_gemma_2_has_caps_and_alternating_windows():
    rope = 'rope(base=10000.0) | soft_cap(50.0)'
    assert specs('gemma2') == (f'{rope} | window(size=4096)', rope)
    scaled = describe({'model_type': 'gemma2', **SIZES, 'query_pre_attn_scalar': 64}, '').leaves
    assert scaled['attention.w_q'].factor == 2.0 and scaled['attention.w_k'].factor == 1.0


def test_gemma_3_has_a_rope_for_every_kind_of_layers():
    six = dict(num_hidden_layers=6, sliding_window=8)
    older = dict(
        rope_theta=1e6,
        rope_local_base_freq=1e4,
        rope_scaling={'rope_type': 'linear', 'factor': 8.0},
    )
    newer = {
        'full_attention': {'rope_type': 'linear', 'factor': 8.0, 'rope_theta': 1e6},
        'sliding_attention': {'rope_type': 'default', 'rope_theta': 1e4},
    }
    local = 'rope(base=10000.0) | window(size=8)'
    expected = (*[local] * 5, 'rope(base=1000000.0, freqs=pi(factor=8.0))')
    assert specs('gemma3_text', **six, **older) == expected
    assert specs('gemma3_text', **six, rope_parameters=newer) == expected
    assert specs('gemma3_text', **six) == (*[local] * 5, 'rope(base=1000000.0)')
    assert len(specs('gemma3_text', **{**six, 'num_hidden_layers': 4})) == 1  # all have a window
    assert specs('gemma3_text', sliding_window_pattern=2, sliding_window=8)[0] == local


MIXTURE = 'mixtures of experts'
CHUNKS = 'layers that attend within chunks'
NOT_READ = {  # architecture -> what it has
    'mixtral': f'.* {MIXTURE}',
    'qwen3_moe': f'.* {MIXTURE}',
    'llama4': f'images, {CHUNKS} .*{MIXTURE}',
    'llama4_text': f'{CHUNKS} .*{MIXTURE}',
    'gemma3': 'images; its text model alone has the model_type gemma3_text',
    'gemma3n': 'images and sound, several streams of token vectors',
    'gemma3n_text': 'several streams of token vectors',
    'deepseek': f'.* {MIXTURE}',
    'deepseek_v2': f'.* a shared latent vector, and .*{MIXTURE}',
    'deepseek_v3': f'.* a shared latent vector, and .*{MIXTURE}',
}
scaled = lambda kind, **fields: dict(rope_scaling={'type': kind, **fields})
lists = lambda long, short, **fields: scaled(
    'longrope', long_factor=long, short_factor=short, **fields
)
gemma2, gemma3 = (
    lambda kind=kind, **fields: dict(model_type=kind, **fields)
    for kind in ('gemma2', 'gemma3_text')
)
REFUSED = {  # message -> fields of a config, that of a llama if it does not say
    "unknown architecture 'lama'; supported: llama, .*; the nearest is 'llama'": dict(
        model_type='lama'
    ),
    r"unknown architecture \['llama'\]": dict(model_type=['llama']),
    f"'newest' is not supported yet: it has .* {MIXTURE}": dict(model_type='newest', num_experts=8),
    'quantization_config is not supported': dict(quantization_config={'quant_method': 'gptq'}),
    "the config of a llama model lacks 'rms_norm_eps'": dict(rms_norm_eps=None),
    "rms_norm_eps='a', expected a number": dict(rms_norm_eps='a'),
    "hidden_size='a', expected a whole number from 1 to 1048576": dict(hidden_size='a'),
    'num_hidden_layers=2.0, expected a whole number from 1 to 4096': dict(num_hidden_layers=2.0),
    "hidden_act='gelu' is not supported, expected 'silu'": dict(hidden_act='gelu'),
    'attn_logit_softcapping=30.0 is not supported': dict(attn_logit_softcapping=30.0),
    "sliding_window='4', expected a whole number from 1 to 2147483647": dict(sliding_window='4'),
    'layer_types has 1 entries, expected one for each of 4 layers': dict(
        layer_types=['full_attention']
    ),
    "layer_types has 'odd'": dict(layer_types=['odd', *['full_attention'] * 3]),
    # Rotary encodings.
    "rope_theta='1e4', expected a number": dict(rope_theta='1e4'),
    "rope_scaling='yarn', expected an object": dict(rope_scaling='yarn'),
    'rope_parameters differs by layer': dict(
        rope_parameters={'full_attention': {'rope_type': 'yarn'}}
    ),
    "unknown rope type 'yran'; did you mean 'yarn'": scaled('yran', factor=2.0),
    "rope type 'yarn' lacks 'factor'": scaled('yarn'),
    'rope_scaling.factor=0.5, expected a number from 1 to 1e': scaled('linear', factor=0.5),
    "rope_scaling.factor='2', expected a number": scaled('linear', factor='2'),
    "rope type 'linear' does not read 'facotr' .4.0.; did you mean 'factor'": scaled(
        'linear', factor=2.0, facotr=4.0
    ),
    "'default' does not read 'factor' .2.0.; valid: .*'rope_type'": dict(
        rope_scaling={'factor': 2.0}
    ),
    'factor of 2.0 is not supported': scaled('proportional', factor=2.0),
    'long_factor=2.0, expected a list of at most 8192 entries, each a number': lists(2.0, [1.0]),
    "'longrope' lacks 'original_max_position_embeddings' or 'factor'": lists([1.0], [1.0]),
    'long_factor has 1 entries, expected 2, half of the rotated width of a head of 4': lists(
        [1.0], [1.0, 2.0], factor=2.0
    ),
    'original_max_position_embeddings=96 is longer than max_position_embeddings=64': scaled(
        'yarn', factor=4.0, original_max_position_embeddings=96
    ),
    # Choices of single architectures.
    'no_rope_layers has 1 entries, expected one for each': dict(
        model_type='smollm3', no_rope_layers=[1]
    ),
    'no_rope_layers=.*each 0 or 1': dict(model_type='smollm3', no_rope_layers=[1, 2, 1, 1]),
    'attention_bias=True is not supported': dict(model_type='qwen3', attention_bias=True),
    'attn_logit_softcapping=0.0, expected a number': gemma2(attn_logit_softcapping=0.0),
    'use_bidirectional_attention=True is not': gemma2(use_bidirectional_attention=True),
    "hidden_activation='silu' is not supported": gemma2(hidden_activation='silu'),
    'attn_logit_softcapping=50.0 is not': gemma3(attn_logit_softcapping=50.0),
    'expected an object for full': gemma3(rope_parameters={'rope_type': 'yarn'}),
    "rope_parameters.full_attention.factor='much', expected a number": gemma3(
        rope_parameters={'full_attention': {'factor': 'much'}}
    ),
    "layer_types has 'chunked_attention', expected full_attention or sliding_attention": gemma3(
        layer_types=['chunked_attention'] * 4
    ),
}


@pytest.mark.parametrize('message', REFUSED)
def test_wrong_values_are_refused(message):
    with pytest.raises(PretrainedError, match=f'config.json: .*{message}') as found:
        cfg_of(**{'model_type': 'llama', **REFUSED[message]})
    assert '\n' not in str(found.value)


@pytest.mark.parametrize('kind', NOT_READ)
def test_architectures_that_are_not_read_yet_are_refused_before_their_tensors(kind, tmp_path):
    config = {'model_type': kind, 'text_config': SIZES}  # sizes may lie deeper, or be missing
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(PretrainedError) as found:
        load_pretrained(tmp_path)
    said = f"config.json: architecture '{kind}' is not supported yet: it has {NOT_READ[kind]}"
    assert found.match(said)
    assert str(found.value).endswith(f'; supported: {", ".join(ARCHITECTURES)}')
    assert '\n' not in str(found.value)


def test_slopes_of_mpt_take_every_other_power_first():
    assert mpt_slopes(4, largest=4.0) == (1 / 2, 1 / 4, 1 / 8, 1 / 16)
    assert mpt_slopes(3) == (2**-4, 2**-8, 2**-2)
