"""Tiny random models of `transformers`, saved and read back: equal logits, also past the trained
length, padded, token by token.

Every architecture with every rope type that `transformers` gives it; Phi-3's config refuses all but
two, and GPT-2, BLOOM and MPT have no rope. Where frequencies follow the length ('dynamic',
'longrope') two things differ, both of them meant:

- `transformers` takes one length for the batch, we one for each row: their rows are run one by one.
- Its cache keeps keys that were rotated for an earlier length (that of Phi-3 starts anew at the
  original one, which it takes for passed too early where there is padding); ours keeps them raw,
  and `Recomputed` reads the text anew where frequencies change, by default for 'longrope', as asked
  for here with 'dynamic'. Decoding is compared with full passes of theirs, without a cache.
"""

import copy

import jax
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.decoding.recomputed import Recomputed
from posenc_jax.lab.pretrained import export_pretrained, load_pretrained
from posenc_jax.protocol.tokens import Tokens

torch = pytest.importorskip('torch', reason='parity needs torch and transformers')
transformers = pytest.importorskip('transformers', reason='parity needs torch and transformers')
torch.set_num_threads(1)  # several cost more than they save here

VOCABULARY, TRAINED, LONG, NEW = 96, 32, 72, 34  # texts of 6 + NEW tokens pass the trained length
GATED = dict(
    vocab_size=VOCABULARY,
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=6,
    num_key_value_heads=2,
    intermediate_size=80,
    rms_norm_eps=1e-5,
    initializer_range=0.3,  # so that positions matter, and greedy texts do not end in one token
)
NEOX = dict(
    vocab_size=VOCABULARY,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=96,
    initializer_range=0.4,
)
TODAY = {**GATED, 'initializer_range': 0.2, 'pad_token_id': 0, 'bos_token_id': 2, 'eos_token_id': 1}
# Windows far below the length of the texts, caps that many logits reach, and a scale of queries
# that is not that of a head.
GEMMA = {
    **TODAY,
    'head_dim': 8,
    'query_pre_attn_scalar': 12,
    'sliding_window': 9,
    'initializer_range': 0.1,
}
GEMMA_CAPS = dict(attn_logit_softcapping=2.0, final_logit_softcapping=5.0)
TWO_TO_ONE = ['sliding_attention', 'sliding_attention', 'full_attention']
FAMILIES = {
    'llama': ('LlamaConfig', GATED),
    'mistral': ('MistralConfig', {**GATED, 'sliding_window': None}),
    'qwen2': ('Qwen2Config', GATED),
    'phi3': (
        'Phi3Config',
        {**GATED, 'pad_token_id': 0, 'original_max_position_embeddings': TRAINED},
    ),
    'gpt_neox': ('GPTNeoXConfig', {**NEOX, 'rotary_pct': 0.5}),
    'qwen3': ('Qwen3Config', {**TODAY, 'head_dim': 8}),
    'olmo2': ('Olmo2Config', TODAY),
    'smollm3': ('SmolLM3Config', {**TODAY, 'num_hidden_layers': 4}),
    'gemma2': ('Gemma2Config', GEMMA),
    'gemma3': ('Gemma3TextConfig', {**GEMMA, 'num_hidden_layers': 3, 'layer_types': TWO_TO_ONE}),
}


def rope(kind, longest=TRAINED, **extra):
    return {
        'max_position_embeddings': longest,
        'rope_parameters': {'rope_type': kind, 'rope_theta': 500.0, **extra},
    }


def extended(kind, **extra):
    return rope(kind, 4 * TRAINED, original_max_position_embeddings=TRAINED, **extra)


# Every head turns in four planes, and every number here tells in one of them or in the temperature.
SHORT, LONGER = [1.0, 1.0, 1.2, 1.5], [1.0, 1.5, 2.5, 4.0]
YARN = dict(factor=4.0, beta_fast=2.0, beta_slow=0.1)
ROPES = {
    'default': rope('default'),
    'linear': rope('linear', factor=4.0),
    'dynamic': rope('dynamic', factor=2.0),
    'yarn': extended('yarn', **YARN),
    'longrope': extended('longrope', factor=8.0, short_factor=SHORT, long_factor=LONGER),
    'llama3': extended('llama3', factor=4.0, low_freq_factor=0.1, high_freq_factor=4.0),
    'proportional': rope('proportional', partial_rotary_factor=0.5),
}
FOLLOW_THE_LENGTH = ('dynamic', 'longrope')


def of_family(name, *changes):
    kind, arguments = FAMILIES[name]
    for change in changes:
        arguments = {**arguments, **change}
    if kind == 'Gemma3TextConfig' and 'rope_parameters' in arguments:
        arguments['rope_parameters'] = {
            'full_attention': arguments['rope_parameters'],
            'sliding_attention': {'rope_type': 'default', 'rope_theta': 50.0},
        }
    return kind, arguments


# name -> (config class, arguments)
MODELS = {
    **{
        f'{family}-{kind}': of_family(family, ROPES[kind])
        for family in FAMILIES
        for kind in (
            ('default', 'longrope') if family == 'phi3' else ROPES
        )  # Phi3Config raises for the others
    },
    'llama-tied-mha': of_family(
        'llama', ROPES['default'], {'num_key_value_heads': 6, 'tie_word_embeddings': True}
    ),
    'llama-yarn-mscale': of_family(
        'llama', extended('yarn', **YARN, mscale=1.0, mscale_all_dim=0.5, truncate=False)
    ),
    'mistral-window': of_family('mistral', ROPES['default'], {'sliding_window': 9}),
    'qwen2-windows': of_family(
        'qwen2',
        ROPES['default'],
        dict(use_sliding_window=True, sliding_window=7, max_window_layers=1),
    ),
    'phi3-longrope-partial': of_family(  # as Phi-4-mini, which leaves the factor to the two lengths
        'phi3',
        extended(
            'longrope', partial_rotary_factor=0.75, short_factor=SHORT[1:], long_factor=LONGER[1:]
        ),
    ),
    'qwen3-windows': of_family(
        'qwen3',
        ROPES['default'],
        dict(use_sliding_window=True, sliding_window=7, max_window_layers=1),
    ),
    'smollm3-windows': of_family(
        'smollm3',
        ROPES['default'],
        dict(use_sliding_window=True, sliding_window=7, no_rope_layers=[0, 1, 1, 0]),
    ),
    'gemma2-caps': of_family('gemma2', ROPES['default'], GEMMA_CAPS),
    'gemma3-five-to-one': of_family(
        'gemma3', ROPES['default'], dict(num_hidden_layers=6, layer_types=None)
    ),
    'gpt_neox-sequential': (
        'GPTNeoXConfig',
        {**NEOX, 'max_position_embeddings': TRAINED, 'use_parallel_residual': False},
    ),
    # No original length here: GPT-2 ends with its table, BLOOM and MPT count distances.
    'gpt2': (
        'GPT2Config',
        dict(
            vocab_size=VOCABULARY,
            n_embd=48,
            n_layer=2,
            n_head=4,
            n_positions=LONG,
            initializer_range=0.3,
        ),
    ),
    'bloom': (
        'BloomConfig',
        dict(vocab_size=VOCABULARY, hidden_size=48, n_layer=4, n_head=6, initializer_range=0.4),
    ),
    'mpt': (
        'MptConfig',
        dict(
            vocab_size=VOCABULARY,
            d_model=48,
            n_layers=2,
            n_heads=6,
            max_seq_len=LONG,
            initializer_range=0.3,
        ),
    ),
}


# Every model reads whole texts. A cache, padding and generation add nothing to what the models of
# these families show of rope types.
ALL_ROPES = 'llama', 'phi3', 'gpt_neox', 'gemma3'
REST = [
    name
    for name in MODELS
    if name.split('-')[0] in ALL_ROPES
    or name.split('-', 1)[-1] not in ROPES
    or name.endswith('-default')
]


def check_close(ours, theirs):
    """To five digits of the largest logit."""
    assert np.abs(np.asarray(ours) - theirs).max() < 2e-5 * np.abs(theirs).max()


class Pair:
    """Their model and ours from its saved files."""

    def __init__(self, name, directory, **changes):
        kind, arguments = MODELS[name]
        config = getattr(transformers, kind)(
            **{**copy.deepcopy(arguments), **changes}
        )  # it writes into what it is given
        torch.manual_seed(0)
        self.theirs = transformers.AutoModelForCausalLM.from_config(
            config, attn_implementation='eager'
        ).eval()
        with torch.no_grad():  # biases and norms are initialised to zeros and ones
            for parameter in self.theirs.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
        self.theirs.save_pretrained(directory)
        self.name, self.ours = name, load_pretrained(directory).model
        self.follows = any(kind in name for kind in FOLLOW_THE_LENGTH)

    def _fresh(self):
        self.theirs(
            torch.ones(1, 1, dtype=torch.long)
        )  # 'dynamic' keeps the base of the longest text until a short one comes
        return self.theirs

    @torch.no_grad()
    def their_logits(self, tokens, valid=None):
        """Row by row, one with padding as the mask and the positions say."""
        rows = []
        for row in range(len(tokens)):
            arguments = {}
            if valid is not None:
                arguments['attention_mask'] = torch.asarray(valid[row : row + 1].astype(np.int64))
                if self.name not in ('bloom', 'mpt'):
                    arguments['position_ids'] = (arguments['attention_mask'].cumsum(1) - 1).clamp(
                        min=0
                    )
            rows.append(
                self._fresh()(torch.asarray(tokens[row : row + 1]), **arguments).logits.numpy()
            )
        return np.concatenate(rows)

    @torch.no_grad()
    def their_text(self, tokens, valid, new, **arguments):
        """Greedy, row by row."""
        rows = [
            self._fresh().generate(
                torch.asarray(tokens[row : row + 1]),
                attention_mask=torch.asarray(valid[row : row + 1].astype(np.int64)),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                **arguments,
            )
            for row in range(len(tokens))
        ]
        return np.concatenate(rows)


@pytest.fixture(scope='module', params=MODELS)
def pair(request, tmp_path_factory):
    return Pair(request.param, tmp_path_factory.mktemp(request.param))


# Models of the same shape and encoding share what is compiled.
forward, read, step = (
    nnx.jit(lambda model, tokens, tok=None: model(tokens, tok)),
    nnx.jit(prefill),
    nnx.jit(decode_step),
)
RENEWING = Recomputed()


@nnx.jit
def read_renewing(model, cache, tokens):
    return RENEWING.prefill(model, cache, tokens)


@nnx.jit
def step_renewing(model, cache, tokens):
    logits, cache = RENEWING.step(model, cache, cache, tokens, model.layers())
    return jax.lax.cond(
        RENEWING.stale(model, cache), lambda: RENEWING.renew(model, cache), lambda: (logits, cache)
    )


def draw(rows, length, seed=0):
    return np.random.default_rng(seed).integers(1, VOCABULARY, (rows, length))


def padded(length, *padding):
    return np.arange(length) >= np.array(padding)[:, None]


@pytest.mark.full_but_one
@pytest.mark.parametrize('length', [TRAINED, LONG])
def test_logits(pair, length):
    tokens = draw(2, length)
    check_close(forward(pair.ours, tokens), pair.their_logits(tokens))


EXPORTED = (
    'llama-yarn', 'mistral-window', 'qwen2-windows', 'qwen3-windows', 'olmo2-linear',
    'smollm3-windows', 'phi3-longrope-partial', 'gemma2-caps', 'gemma3-five-to-one',
    'gpt_neox-yarn', 'gpt_neox-sequential', 'gpt2', 'bloom', 'mpt',
)  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize('pair', EXPORTED, indirect=True)
def test_what_is_exported_is_the_public_model_again(pair, tmp_path):
    kind = pair.theirs.config.model_type
    export_pretrained(pair.ours, tmp_path, architecture=kind)
    again = copy.copy(pair)
    again.theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, attn_implementation='eager'
    ).eval()
    assert again.theirs.config.model_type == kind
    tokens = draw(2, LONG)
    check_close(again.their_logits(tokens), pair.their_logits(tokens))


@pytest.mark.parametrize('pair', REST, indirect=True)
@pytest.mark.full
def test_left_padding(pair):
    tokens, valid = (
        draw(3, LONG),
        padded(LONG, 0, 5, LONG - 20),
    )  # the last row is within the original length, the others are not
    ours = np.asarray(forward(pair.ours, tokens, Tokens.of(valid=valid)))
    check_close(ours[valid], pair.their_logits(tokens, valid)[valid])


# A rule that does not follow the length changes angles alone, and the tests of logits show them.
ANGLES = 'linear', 'yarn', 'llama3', 'proportional'


@pytest.mark.parametrize(
    'pair', [name for name in REST if not name.endswith(ANGLES)], indirect=True
)
@pytest.mark.full
def test_token_by_token_equals_their_pass(pair):
    length, first = TRAINED + 4, 20
    tokens, (start, following) = (
        draw(1, length),
        (read_renewing, step_renewing) if pair.follows else (read, step),
    )
    logits, cache = start(
        pair.ours, init_cache(pair.ours, Tokens.of(length=length)), tokens[:, :first]
    )
    # One pass is enough unless the frequencies follow the length.
    passes = () if pair.follows else pair.their_logits(tokens).swapaxes(0, 1)
    theirs = lambda i: pair.their_logits(tokens[:, :i])[:, -1] if pair.follows else passes[i - 1]
    check_close(logits[:, -1], theirs(first))
    for i in range(first, length):
        logits, cache = following(pair.ours, cache, tokens[:, i])
        check_close(logits, theirs(i + 1))


# The two tests above show padding and the cache of `REST`, from which a text follows.
GENERATED = 'llama-default', 'llama-dynamic', 'llama-longrope', 'mistral-window', 'gpt2', 'bloom'


@pytest.mark.parametrize('pair', GENERATED, indirect=True)
@pytest.mark.full
def test_greedy_generation(pair):
    tokens, valid = draw(2, 6), padded(6, 0, 2)
    decoding = RENEWING if 'dynamic' in pair.name else None
    ours = generate(
        pair.ours, tokens, valid=valid, max_new_tokens=NEW, temperature=0.0, decoding=decoding
    )
    np.testing.assert_array_equal(
        ours, pair.their_text(tokens, valid, NEW, use_cache=not pair.follows)
    )


@pytest.mark.parametrize('pair', [name for name in REST if 'longrope' in name], indirect=True)
@pytest.mark.full
def test_greedy_generation_beyond_the_original_length(pair):
    """With the long list from the first token on, so that all layers and their cache agree."""
    tokens, valid = draw(2, TRAINED + 8), padded(TRAINED + 8, 0, 2)
    ours = generate(pair.ours, tokens, valid=valid, max_new_tokens=NEW, temperature=0.0)
    np.testing.assert_array_equal(ours, pair.their_text(tokens, valid, NEW))
