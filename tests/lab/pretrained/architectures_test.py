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


def cfg_of(kind, **fields):
    return describe({'model_type': kind, **SIZES, **fields}, 'config.json').cfg


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


@pytest.mark.parametrize(
    'kind, fields, message',
    [
        (
            'smollm3',
            dict(no_rope_layers=[1]),
            'no_rope_layers has 1 entries, expected one for each',
        ),
        ('smollm3', dict(no_rope_layers=[1, 2, 1, 1]), 'no_rope_layers=.*each 0 or 1'),
        ('qwen3', dict(attention_bias=True), 'attention_bias=True is not supported'),
        (
            'gemma2',
            dict(attn_logit_softcapping=0.0),
            'attn_logit_softcapping=0.0, expected a number',
        ),
        (
            'gemma2',
            dict(use_bidirectional_attention=True),
            'use_bidirectional_attention=True is not',
        ),
        ('gemma2', dict(hidden_activation='silu'), "hidden_activation='silu' is not supported"),
        ('gemma3_text', dict(attn_logit_softcapping=50.0), 'attn_logit_softcapping=50.0 is not'),
        ('gemma3_text', dict(rope_parameters={'rope_type': 'yarn'}), 'expected an object for full'),
        (
            'gemma3_text',
            dict(rope_parameters={'full_attention': {'factor': 'much'}}),
            "rope_parameters.full_attention.factor='much', expected a number",
        ),
        (
            'gemma3_text',
            dict(layer_types=['chunked_attention'] * 4),
            "layer_types has 'chunked_attention', expected full_attention or sliding_attention",
        ),
    ],
)
def test_wrong_values_are_refused(kind, fields, message):
    with pytest.raises(PretrainedError, match=f'config.json: .*{message}') as found:
        cfg_of(kind, **fields)
    assert '\n' not in str(found.value)


@pytest.mark.parametrize(
    'kind, missing',
    [
        ('mixtral', '.* mixtures of experts'),
        ('qwen3_moe', '.* mixtures of experts'),
        ('llama4', 'images, layers that attend within chunks .*mixtures of experts'),
        ('llama4_text', 'layers that attend within chunks .*mixtures of experts'),
        ('gemma3n', 'images and sound, several streams of token vectors'),
        ('gemma3n_text', 'several streams of token vectors'),
        ('deepseek', '.* mixtures of experts'),
        ('deepseek_v2', '.* a shared latent vector, and .*mixtures of experts'),
        ('deepseek_v3', '.* a shared latent vector, and .*mixtures of experts'),
    ],
)
def test_architectures_that_are_not_read_yet_are_refused_before_their_tensors(
    kind, missing, tmp_path
):
    config = {'model_type': kind, 'text_config': SIZES}  # sizes may lie deeper, or be missing
    (tmp_path / 'config.json').write_text(json.dumps(config))
    with pytest.raises(PretrainedError) as found:
        load_pretrained(tmp_path)
    assert found.match(f"config.json: architecture '{kind}' is not supported yet: it has {missing}")
    assert str(found.value).endswith(f'; supported: {", ".join(ARCHITECTURES)}')
    assert '\n' not in str(found.value)


def test_slopes_of_mpt_take_every_other_power_first():
    assert mpt_slopes(4, largest=4.0) == (1 / 2, 1 / 4, 1 / 8, 1 / 16)
    assert mpt_slopes(3) == (2**-4, 2**-8, 2**-2)
