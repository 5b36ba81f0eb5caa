"""Contract tests of models in which all layers are one mixer, or every other one is attention with
`rope()`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.lab.decoding.generate import continue_cache, generate
from posenc_jax.layer.sharding import make_mesh, param_shardings
from posenc_jax.protocol.errors import SpecError
from posenc_jax.testing.compare import close, close_gradients, gap
from posenc_jax.testing.mixers import PADDED
from posenc_jax.testing.subject import DOCUMENT, HEADS, KV_HEADS, LENGTH, PACKED, ROWS, WIDTH
from tests.mixers import small
from tests.mixers.mixer_contract_test import (
    ENTRIES,
    PARTS,
    REPRESENTATIVE,
    every_form,
    every_mixer,
    expensive,
)
from tests.mixers.small import moved

VOCAB, MODEL = 11, 16
SIZES = dict(width=MODEL, heads=HEADS, kv_heads=KV_HEADS, head_dim=WIDTH)
IDS = np.asarray(jax.random.randint(jax.random.key(1), (ROWS, LENGTH), 0, VOCAB))
# What cuts, caches and chooses in the layers of attention beside a mixer is the same for all
# mixers, so one of them stands beside attention for all.
every_model = pytest.mark.parametrize(
    'entry, mixed',
    [
        pytest.param(entry, mixed, id=f'{"with_rope" if mixed else "alone"}-{entry.key}')
        for entry in ENTRIES
        for mixed in (False, True)
        if not mixed or entry.key == REPRESENTATIVE
    ],
)


@functools.cache
def model_of(entry, mixed, **fields):
    pattern = (*PARTS.get(entry.key, (entry.card.example,)), 'rope()')
    pattern = pattern if mixed else pattern[:-1]
    return moved(small.model_of(*pattern, **SIZES, **fields), 0.1, 7)


logits_of = jax.jit(lambda model, ids, tok: model(ids, tok))
read, read_on = jax.jit(prefill), jax.jit(decode_step)
# The prompts that models continue, which a mesh can cut: the second row is padded.
PROMPT, BEGUN = 8, np.arange(LENGTH)[None] >= np.array([[0], [3]])


@functools.cache
def generated(entry, mixed):
    """The prompts with their most probable continuations, up to `LENGTH`."""
    return continued(model_of(entry, mixed))


def continued(model):
    prompts, valid = IDS[:, :PROMPT], BEGUN[:, :PROMPT]
    return generate(model, prompts, valid=valid, max_new_tokens=LENGTH - PROMPT, temperature=0.0)


@pytest.mark.full
@every_mixer
def test_a_model_in_bfloat16_is_close_to_float32(entry):
    tok = pj.Tokens.of(length=LENGTH)
    logits = logits_of(model_of(entry, True), IDS, tok)
    low = logits_of(model_of(entry, True, dtype='bfloat16'), IDS, tok)
    assert gap(low, logits) < 0.25 and np.median(np.abs(low - logits)) < 0.04


@expensive
@every_model
def test_decoding_equals_the_full_pass(entry, mixed):
    model, tok = model_of(entry, mixed), pj.Tokens.of(valid=BEGUN)
    expected, real = np.asarray(logits_of(model, IDS, tok)), BEGUN[:, :PROMPT]
    logits, cache = read(model, init_cache(model, tok), IDS[:, :PROMPT])
    close(np.asarray(logits)[real], expected[:, :PROMPT][real])
    for number in range(PROMPT, LENGTH):
        logits, cache = read_on(model, cache, IDS[:, number])
        close(logits, expected[:, number])


@pytest.mark.full
@every_model
def test_generated_tokens_are_the_most_probable(entry, mixed):
    model, tok = model_of(entry, mixed), pj.Tokens.of(valid=BEGUN)
    out = generated(entry, mixed)
    logits, cache = read(model, init_cache(model, tok), IDS[:, :PROMPT])
    new = continue_cache(model, cache, logits[:, -1], max_new_tokens=LENGTH - PROMPT)
    np.testing.assert_array_equal(out[:, PROMPT:], new)
    logits = np.asarray(logits_of(model, out, tok))[:, PROMPT - 1 : -1]
    chosen = np.take_along_axis(logits, np.asarray(new)[..., None], axis=-1)[..., 0]
    close(chosen, logits.max(-1))


@expensive
@every_form
def test_packing_and_padding_change_nothing(entry):
    """Two documents have the same logits alone, packed in one row, and with padding on the left or
    on the right.
    """
    model = model_of(entry, True)
    documents = IDS[:, :DOCUMENT]
    alone = pj.Tokens.of(length=DOCUMENT)
    expected = logits_of(model, documents, alone)
    packed = logits_of(model, documents.reshape(1, LENGTH), pj.Tokens.of(segment=PACKED[:1]))
    close(packed.reshape(expected.shape), expected)
    for order in (1, -1):
        valid = np.repeat([[False, True]], DOCUMENT, axis=1)[:, ::order]
        padded = np.concatenate([np.full_like(documents, 3), documents][::order], axis=1)
        out = logits_of(model, padded, pj.Tokens.of(valid=np.broadcast_to(valid, padded.shape)))
        close(np.asarray(out)[:, valid[0]], expected)


@pytest.mark.full
@every_model
@pytest.mark.skipif(len(jax.devices()) < 8, reason='needs eight emulated devices')
def test_sharded_equals_unsharded(entry, mixed):
    model = model_of(entry, mixed)
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    tok = pj.Tokens.of(valid=PADDED)

    def loss(params, rest, tok):
        logits = nnx.merge(graphdef, params, rest)(IDS, tok)
        picked = jax.nn.log_softmax(logits)[:, :-1] * jax.nn.one_hot(IDS[:, 1:], VOCAB)
        return -jnp.where(tok.valid[:, :-1, None], picked, 0).mean(), logits

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    mesh = make_mesh(1, 2, 2, 2, devices=jax.devices()[:8])
    place = lambda state: jax.device_put(state, param_shardings(state, mesh))
    placed = place(params), place(rest)
    (_, logits), grads = run(params, rest, tok)
    with jax.set_mesh(mesh):
        (_, sharded), cut = run(*placed, tok)
        # The compiler cuts a step of any mixer as it cuts the pass over the text.
        out = continued(nnx.merge(graphdef, *placed)) if entry.key == REPRESENTATIVE else None
    assert len(sharded.sharding.device_set) == 8
    close(np.asarray(sharded)[PADDED], np.asarray(logits)[PADDED])
    close_gradients(cut, grads)
    if out is not None:
        np.testing.assert_array_equal(out, generated(entry, mixed))


@every_mixer
def test_mixers_that_are_causal_refuse_an_encoder(entry):
    own = dict(encoding=entry.card.example, layers=1, kind='encoder')
    of_one = lambda: small.model_of(**own, **SIZES)
    build_it = lambda: nnx.eval_shape(of_one)
    if not entry.card.causal_only:
        build_it()
        return
    with pytest.raises(SpecError, match=f'{entry.key} reads tokens from left to right'):
        build_it()
