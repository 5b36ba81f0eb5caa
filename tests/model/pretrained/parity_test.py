"""Tiny random models of `transformers`, saved and read back: equal logits, also past the trained length, padded, token by token."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.core.encoding import Tokens
from posenc_jax.model.decode import decode_step, generate, init_cache, prefill
from posenc_jax.model.pretrained import load_pretrained

torch = pytest.importorskip('torch', reason='parity needs torch and transformers')
transformers = pytest.importorskip('transformers', reason='parity needs torch and transformers')

VOCABULARY, TRAINED, LONG = 96, 32, 72
ROPE = dict(
    vocab_size=VOCABULARY,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=80,
    max_position_embeddings=TRAINED,
    rms_norm_eps=1e-5,
    initializer_range=0.3,  # so that positions matter
    attn_implementation='eager',
)
SHORT, LONGER = [1.0, 1.0, 1.2, 1.5], [1.0, 1.5, 2.5, 4.0]
NEOX = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=TRAINED,
    initializer_range=0.2,
)


def rope(kind, **extra):
    return {'rope_parameters': {'rope_type': kind, 'rope_theta': 10000.0, **extra}}


def scaled(kind, **extra):
    return rope(kind, factor=4.0, original_max_position_embeddings=TRAINED, **extra)


# name -> (config class, arguments, whether one pass may be longer than trained)
MODELS = {
    'llama': ('LlamaConfig', ROPE, True),
    'llama-tied-mha': ('LlamaConfig', {**ROPE, 'num_key_value_heads': 6, 'tie_word_embeddings': True}, True),
    'llama-linear': ('LlamaConfig', {**ROPE, **rope('linear', factor=4.0)}, True),
    'llama-dynamic': ('LlamaConfig', {**ROPE, **rope('dynamic', factor=2.0)}, True),
    'llama-yarn': ('LlamaConfig', {**ROPE, **scaled('yarn', beta_fast=8.0)}, True),
    'llama-llama3': ('LlamaConfig', {**ROPE, **scaled('llama3', low_freq_factor=1.0, high_freq_factor=4.0)}, True),
    'llama-longrope': (
        'LlamaConfig',
        {**ROPE, 'max_position_embeddings': 4 * TRAINED, **scaled('longrope', short_factor=SHORT, long_factor=LONGER)},
        True,
    ),
    'llama-proportional': ('LlamaConfig', {**ROPE, **rope('proportional', partial_rotary_factor=0.5)}, True),
    'mistral-window': ('MistralConfig', {**ROPE, 'sliding_window': 9}, True),
    'qwen2': ('Qwen2Config', ROPE, True),
    'qwen2-windows': (
        'Qwen2Config',
        {**ROPE, 'use_sliding_window': True, 'sliding_window': 7, 'max_window_layers': 1},
        True,
    ),
    'phi3': ('Phi3Config', {**ROPE, 'pad_token_id': 0}, True),
    'phi3-longrope': (
        'Phi3Config',
        {
            **ROPE,
            'pad_token_id': 0,
            'max_position_embeddings': 4 * TRAINED,
            'original_max_position_embeddings': TRAINED,
            **rope('longrope', short_factor=SHORT, long_factor=LONGER, original_max_position_embeddings=TRAINED),
        },
        True,
    ),
    'gpt_neox': ('GPTNeoXConfig', NEOX, True),
    'gpt_neox-sequential': ('GPTNeoXConfig', {**NEOX, 'use_parallel_residual': False}, True),
    'gpt2': ('GPT2Config', dict(vocab_size=VOCABULARY, n_embd=48, n_layer=2, n_head=4, n_positions=LONG, initializer_range=0.2), False),
    'bloom': ('BloomConfig', dict(vocab_size=VOCABULARY, hidden_size=48, n_layer=2, n_head=6, initializer_range=0.2), True),
    'mpt': ('MptConfig', dict(vocab_size=VOCABULARY, d_model=48, n_layers=2, n_heads=6, max_seq_len=LONG, initializer_range=0.2), False),
}
DYNAMIC = ('llama-dynamic', 'llama-longrope', 'phi3-longrope')  # theirs keep keys that were rotated for another length


class Pair:
    """Their model and ours from its saved files."""

    def __init__(self, name, directory):
        kind, arguments, self.longer = MODELS[name]
        config = getattr(transformers, kind)(**arguments)
        torch.manual_seed(0)
        self.theirs = transformers.AutoModelForCausalLM.from_config(config, attn_implementation='eager').eval()
        with torch.no_grad():  # biases and norms are initialised to zeros and ones
            for parameter in self.theirs.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        self.theirs.save_pretrained(directory)
        self.found = load_pretrained(directory)
        self.ours = self.found.model

    def their_logits(self, tokens, **arguments):
        with torch.no_grad():
            return self.theirs(torch.asarray(np.asarray(tokens)), **arguments).logits.numpy()


@pytest.fixture(scope='module', params=MODELS)
def pair(request, tmp_path_factory):
    pair = Pair(request.param, tmp_path_factory.mktemp(request.param))
    pair.name = request.param
    return pair


def draw(rows, length, seed=0):
    return np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length))


@pytest.mark.parametrize('length', [TRAINED, LONG])
def test_logits(pair, length):
    tokens = draw(2, length)
    np.testing.assert_allclose(pair.ours(jnp.asarray(tokens)), pair.their_logits(tokens), atol=1e-4, rtol=1e-4)


def test_left_padding(pair):
    tokens, valid = draw(2, TRAINED - 4), np.arange(TRAINED - 4) >= np.array([[0], [5]])
    theirs = pair.their_logits(
        tokens,
        attention_mask=torch.asarray(valid.astype(np.int64)),
        **({} if pair.name in ('bloom', 'mpt') else {'position_ids': torch.asarray(np.maximum(valid.cumsum(1) - 1, 0))}),
    )
    ours = pair.ours(jnp.asarray(tokens), Tokens.of(valid=valid))
    np.testing.assert_allclose(np.asarray(ours)[valid], theirs[valid], atol=1e-4, rtol=1e-4)


def test_token_by_token_equals_their_pass(pair):
    length = TRAINED if pair.name in DYNAMIC else TRAINED + 8
    tokens, first = draw(1, length), 6
    theirs = pair.their_logits(tokens)
    logits, cache = prefill(pair.ours, init_cache(pair.ours, Tokens.of(length=length)), jnp.asarray(tokens[:, :first]))
    np.testing.assert_allclose(logits, theirs[:, :first], atol=1e-4, rtol=1e-4)
    step = nnx.jit(decode_step)
    for i in range(first, length):
        logits, cache = step(pair.ours, cache, jnp.asarray(tokens[:, i]))
        np.testing.assert_allclose(logits, theirs[:, i], atol=1e-4, rtol=1e-4)


def test_greedy_generation(pair):
    new = TRAINED - 6 if pair.name in DYNAMIC else 64
    tokens = draw(2, 6)
    with torch.no_grad():
        theirs = pair.theirs.generate(
            torch.asarray(tokens), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0, eos_token_id=None
        )
    ours = generate(pair.ours, jnp.asarray(tokens), max_new_tokens=new, temperature=0.0)
    np.testing.assert_array_equal(ours, theirs.numpy())
