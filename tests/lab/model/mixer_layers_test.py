"""Models in which some layers are mixers: what reads attention refuses them by name, and what
changes the encodings leaves them alone.
"""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.analyse.attention_entropy import attention_entropy
from posenc_jax.lab.analyse.decay_kernel import trained_field
from posenc_jax.lab.analyse.pieces_entropy import entropy_of_pieces
from posenc_jax.lab.analyse.receptive_field import receptive_field
from posenc_jax.lab.analyse.rope_usage import rope_usage
from posenc_jax.lab.analyse.token_distance import token_distance, without_heads
from posenc_jax.lab.conversion.tulip import swap
from posenc_jax.lab.decoding import (
    any_order,
    ape_parallel,
    burst,
    double_sparsity,
    duo_attention,
    graph_kv,
    parallel_context_entropy,
    pie,
    read_contexts,
    recurrence,
)
from posenc_jax.lab.decoding.constant_cache import ConstantCache, constant_cache, keep_ends
from posenc_jax.lab.decoding.decode import init_cache, prefill
from posenc_jax.lab.decoding.duo_attention.cache import prefill as duo_prefill
from posenc_jax.lab.decoding.duo_attention.cache import streaming
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.decoding.recomputed import Recomputed, default_decoding
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.pretrained.export import export_pretrained
from posenc_jax.lab.train.duo_gates import mixed_hidden
from posenc_jax.methods.alibi import ALiBi
from posenc_jax.methods.ms_poe import probe_heads
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.tokens import Tokens

SIZES = dict(vocab_size=9, train_len=8, layers=2, width=8, heads=2, encoding='')
TEXT = jnp.arange(8)[None] % 7
CONTEXTS = [[2, 3], [4]]
CHANNELS = jnp.zeros((2, 2, 1), jnp.int32)


@functools.cache
def model_of(*pattern):
    return Transformer(TransformerConfig(**SIZES, pattern=pattern), rngs=nnx.Rngs(0))


def filled(model):
    return prefill(model, init_cache(model, Tokens.of(length=12)), TEXT)[1]


# Methods that read queries, keys or weights of every layer.
REFUSED = {
    'rope_usage': lambda model: rope_usage(model, TEXT),
    'token_distance': lambda model: token_distance(model, TEXT),
    'receptive_field': lambda model: receptive_field(model, TEXT),
    'attention_entropy': lambda model: attention_entropy(model, TEXT),
    'entropy_of_pieces': lambda model: entropy_of_pieces(model, TEXT, pieces=2, query=3),
    'trained_field': lambda model: trained_field(model),
    'without_heads': lambda model: without_heads(model, [(0, 0), (1, 0)]),
    'probe_heads': lambda model: probe_heads(model, TEXT),
    'read_segment': lambda model: recurrence.read_segment(model, TEXT, length=4),
    'segment_losses': lambda model: recurrence.segment_losses(
        model, TEXT, TEXT, segment=4, length=4
    ),
    'sample_in_order': lambda model: any_order.sample_in_order(
        model, TEXT, TEXT * 0 + jnp.arange(8), known=2, temperature=0.0
    ),
    'burst_sample': lambda model: burst.burst_sample(
        model, TEXT, TEXT * 0 + jnp.arange(8), known=2, key=jax.random.key(0)
    ),
    'ape_parallel': lambda model: ape_parallel.encode(model, [1], CONTEXTS),
    'parallel_context_entropy': lambda model: parallel_context_entropy.encode(model, [1], CONTEXTS),
    'graph_kv': lambda model: graph_kv.encode(model, [1], CONTEXTS, []),
    'pie': lambda model: pie.edit(model, filled(model), [(1, 2, [3])]),
    'read': lambda model: read_contexts.read(model, filled(model), TEXT[:, :2]),
    'calibrate': lambda model: double_sparsity.calibrate(model, TEXT, groups=4),
    'sparse_logits': lambda model: double_sparsity.sparse_logits(
        model, CHANNELS, TEXT, keep=2, dense_layers=0
    ),
    'Sparse': lambda model: generate(
        model,
        TEXT,
        max_new_tokens=2,
        temperature=0.0,
        decoding=double_sparsity.Sparse(CHANNELS, keep=2),
    ),
    'label': lambda model: double_sparsity.label(filled(model), CHANNELS),
    'deploy': lambda model: duo_attention.deploy(model, np.ones((2, 2), bool), sink=1, recent=2),
    'heads_of': lambda model: duo_attention.heads_of(model),
    'streaming': lambda model: streaming(model),
    'duo_prefill': lambda model: duo_prefill(
        model, init_cache(model, Tokens.of(length=12)), TEXT, heads=((True, True),) * 2
    ),
    'mixed_hidden': lambda model: mixed_hidden(
        model, jnp.ones((2, 2)), TEXT, Tokens.of(length=8), sink=1, recent=2
    ),
    'constant_cache': lambda model: constant_cache(
        model, filled(model), init_cache(model, Tokens.of(length=12)).tokens
    ),
    'ConstantCache': lambda model: generate(
        model, TEXT, max_new_tokens=2, temperature=0.0, decoding=ConstantCache()
    ),
    'keep_ends': lambda model: keep_ends(
        filled(model), init_cache(model, Tokens.of(length=12)).tokens, first=1, last=2
    ),
    'export_pretrained': lambda model: export_pretrained(model, 'never_written'),
}


# Where the attention beside the mixer needs another encoding than `rope()` for the method.
ATTENTION = dict.fromkeys(
    ('heads_of', 'streaming', 'duo_prefill'),
    'rope() | duo_attention(sink=1, recent=2, retrieval=(1,))',
) | dict.fromkeys(
    ('constant_cache', 'ConstantCache'), 'lm_infinite(encoding=rope(), n_global=1, n_local=3)'
)
ATTENTION['trained_field'] = 'alibi()'
SLOW = ('segment_losses', 'sparse_logits', 'probe_heads', 'Sparse', 'ConstantCache')


@pytest.mark.full_where(condition=lambda name, first: name in SLOW or not first)
@pytest.mark.parametrize('first', [True, False], ids=['mixer_first', 'attention_first'])
@pytest.mark.parametrize('name', REFUSED)
def test_what_reads_attention_refuses_a_mixer_by_name(name, first):
    pattern = ('cheems()', ATTENTION.get(name, 'rope()'))
    with pytest.raises(ValueError, match='cheems|MixerState'):
        REFUSED[name](model_of(*pattern[:: 1 if first else -1]))


@pytest.mark.full
@pytest.mark.parametrize('name', REFUSED)
def test_the_refused_calls_are_right_for_attention(name):
    """Without the mixer they raise nothing, or name something else."""
    attention = ATTENTION.get(name, 'rope()')
    try:
        REFUSED[name](model_of(attention, attention))
    except ValueError as error:
        assert not re.search('cheems|MixerState', str(error))
        assert name in ('sample_in_order', 'burst_sample', 'export_pretrained'), error


# What works beside a mixer.


@pytest.fixture(scope='module')
def beside():
    return model_of('cheems()', 'rope()')


def test_an_extension_reaches_the_attention_layers(beside):
    model = beside.extend('yarn(factor=4.0)')
    assert type(model.blocks[0].own_mixer) is type(beside.blocks[0].own_mixer)
    assert model.encoding(1, model.blocks[1]).parts[0].freqs is not None
    assert jnp.abs(model(TEXT) - beside(TEXT)).max() > 1e-5
    with pytest.raises(SpecError, match='cheems has no encoding that yarn'):
        model_of('cheems()').extend('yarn(factor=4.0)')


def test_parts_are_changed_beside_a_mixer(beside):
    model = beside.map_parts(Rotary, lambda part, layers: part)
    np.testing.assert_allclose(model(TEXT), beside(TEXT), atol=1e-6)
    with pytest.raises(ValueError, match=r'no alibi part; its layers have cheems, rope \| causal'):
        beside.map_parts(ALiBi, lambda part, layers: part)


def test_heads_of_attention_layers_are_removed(beside):
    less = without_heads(beside, [(1, 0)])
    w_out = less.blocks[1].attention.w_out[...][0]
    assert not w_out[0].any() and w_out[1].any()
    with pytest.raises(ValueError, match='layer 0 of the pattern is cheems'):
        without_heads(beside, [(0, 0)])


@pytest.mark.full
def test_tulip_swaps_the_positions_beside_a_mixer():
    teacher = model_of('cheems()', 'learned_absolute(max_len=8)')
    student = swap(teacher, 'rope()')
    assert student.cfg.pattern == ('cheems()', 'rope()')
    ours, theirs = (nnx.state(model.blocks[0]) for model in (student, teacher))
    chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.full
@pytest.mark.parametrize(
    'freqs, decoding',
    [('longrope(long=(2.0, 4.0), short=(1.0, 2.0), factor=4.0)', None),
     ('dynamic_ntk()', Recomputed())],
)  # fmt: skip
def test_rules_that_follow_the_length_are_decoded_beside_a_mixer(freqs, decoding):
    """The layers of the pattern are read again after a change, and so is the mixer's state."""
    model = model_of('cheems()', f'rope(freqs={freqs})')
    assert decoding is not None or default_decoding(model) == Recomputed()
    out = generate(model, TEXT, max_new_tokens=4, temperature=0.0, decoding=decoding)
    for length in range(8, 12):
        assert out[0, length] == model(out[:, :length], last=1).argmax()
