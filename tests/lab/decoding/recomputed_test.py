"""Where frequencies follow the length, decoding with renewals is the full pass over every prefix,
in every layer.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.decoding.decoding import Decoding
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.decoding.recomputed import Recomputed, default_decoding
from posenc_jax.protocol.tokens import Tokens
from tests.small_models import small_model

TRAINED, LENGTH, PROMPT = 8, 13, 5
BASE = dict(vocab_size=11, train_len=TRAINED, layers=2, width=16, heads=2)
TOKENS = np.random.default_rng(0).integers(0, 11, (2, LENGTH))
PADDED = Tokens.of(
    valid=np.arange(LENGTH) >= np.array([[0], [2]])
)  # the rows pass the trained length at different steps
LISTS = 'longrope(long=(2.0, 3.0, 3.0, 4.0), short=(1.0, 1.0, 1.5, 2.0), factor=4.0{})'
LONGROPE = f'rope(freqs={LISTS.format("")})'
DYNAMIC = ['rope(freqs=dynamic_ntk())', 'rope(freqs=yarn(dynamic=True))']
EOS = 8  # which the second row of the generated texts starts with


def model_of(encoding=LONGROPE, **fields):
    return small_model(encoding=encoding, **{**BASE, **fields})


@functools.partial(jax.jit, static_argnums=(0, 1))
def _stepped(graphdef, decoding, state, tokens, tok):
    model = nnx.merge(graphdef, state)
    empty = init_cache(model, tok)
    first, cache = decoding.prefill(model, empty, tokens[:, :PROMPT])
    layers = model.layers()

    def one(cache, token):
        before = jax.tree.map(lambda a: (a.shape, a.dtype), cache)
        logits, cache = decoding.step(model, empty, cache, token, layers)
        stale = decoding.stale(model, cache)
        if stale is not None:
            logits, cache = jax.lax.cond(
                stale, lambda c: decoding.renew(model, c), lambda c: (logits, c), cache
            )
        assert jax.tree.map(lambda a: (a.shape, a.dtype), cache) == before
        return cache, (logits, jnp.asarray(stale is not None and stale))

    _, (logits, stale) = jax.lax.scan(one, cache, tokens[:, PROMPT:].T)
    return jnp.concatenate([first[None, :, 0], logits]), stale


def stepped(model, decoding, tok=PADDED, tokens=TOKENS):
    """Logits behind the prompt and every later token [steps, B, V], and which steps were
    renewed.
    """
    return _stepped(*((split := nnx.split(model))[0], decoding), split[1], tokens, tok)


@functools.partial(jax.jit, static_argnums=0)
def _prefixes(graphdef, state, tokens, tok):
    model = nnx.merge(graphdef, state)
    lengths = jnp.repeat(jnp.arange(PROMPT, tokens.shape[1] + 1), len(tokens))[:, None]
    many = lambda a: jnp.tile(jnp.broadcast_to(a, tokens.shape), (len(lengths) // len(tokens), 1))
    known = many(jnp.ones(tokens.shape, bool) if tok.valid is None else tok.valid) & (
        jnp.arange(tokens.shape[1]) < lengths
    )
    logits = model(many(tokens), Tokens.of(positions=many(tok.pos), valid=known))
    return jnp.take_along_axis(logits, lengths[..., None] - 1, axis=1)[:, 0].reshape(
        -1, len(tokens), logits.shape[-1]
    )


def prefixes(model, tok=PADDED, tokens=TOKENS):
    """The same of full passes, one for every row and prefix; all of them at once."""
    split = nnx.split(model)
    return _prefixes(split[0], split[1], tokens, tok)


@pytest.mark.parametrize('encoding', [LONGROPE, *DYNAMIC])
@pytest.mark.full_where(condition=lambda encoding: encoding != LONGROPE)
def test_every_step_is_the_full_pass_over_its_prefix(encoding):
    model = model_of(encoding)
    expected, (plain, _), (logits, renewed) = (
        prefixes(model),
        stepped(model, Decoding()),
        stepped(model, Recomputed()),
    )
    np.testing.assert_allclose(logits, expected, atol=2e-5)
    within = TRAINED - PROMPT + 1
    np.testing.assert_allclose(plain[:within], expected[:within], atol=2e-5)
    assert (
        np.abs(plain[within:] - expected[within:]).max() > 1e-4
    )  # without it, deeper layers keep the shorter text's
    # The rows hold TRAINED + 1 tokens with the step to slot 9 and, behind two slots of padding, to
    # slot 11.
    slots = np.arange(PROMPT + 1, LENGTH + 1)
    np.testing.assert_array_equal(
        renewed, np.isin(slots, (9, 11)) if encoding == LONGROPE else slots > TRAINED
    )


@pytest.mark.full
def test_other_layers_keep_what_they_keep(toys):
    """Keys that evolve, features, rows of the layer input, several inputs, windows: beside a layer
    that switches.
    """
    model = model_of(
        pattern=('toy_path() | toy_gate()', f'{LONGROPE} | window(size=6)', 'conflator()'), layers=3
    )
    logits, renewed = stepped(model, Recomputed())
    np.testing.assert_allclose(logits, prefixes(model), atol=2e-5)
    assert renewed.sum() == 2


@pytest.mark.full
def test_positions_of_the_task_decide():
    tok, model = Tokens.of(positions=np.arange(LENGTH)[None] // 2 * 2), model_of()
    logits, renewed = stepped(model, Recomputed(), tok)
    np.testing.assert_allclose(logits, prefixes(model, tok), atol=2e-5)
    np.testing.assert_array_equal(
        np.flatnonzero(renewed), [TRAINED - PROMPT]
    )  # the first token of an even length, at 8


@pytest.mark.parametrize(
    'rows, length', [(1, TRAINED + 2), (2, LENGTH)]
)  # one row: its last step switches
@pytest.mark.full
def test_generation_is_repeated_full_passes(rows, length, monkeypatch):
    passes, renew = [], Recomputed.renew

    def counted(self, model, cache):
        jax.debug.callback(lambda: passes.append(1))
        return renew(self, model, cache)

    monkeypatch.setattr(Recomputed, 'renew', counted)
    model, valid = model_of(seed=3), PADDED.valid[:, :length]
    tok = Tokens.of(length=length) if rows == 1 else Tokens.of(valid=valid)
    given = dict(
        valid=None if rows == 1 else valid[:, :PROMPT],
        eos=EOS,
        max_new_tokens=length - PROMPT,
        temperature=0.0,
    )
    out = generate(model, TOKENS[:rows, :PROMPT], **given)
    jax.effects_barrier()
    expected = jnp.argmax(prefixes(model, tok, out), -1)[:-1].T
    new = np.asarray(out[:, PROMPT:])
    ended = np.cumsum(new == EOS, axis=1) - (new == EOS) > 0
    np.testing.assert_array_equal(new, np.where(ended, EOS, expected))
    assert len(passes) == rows  # one for each length of the prompts
    if rows == 2:
        plain, _ = stepped(model, Decoding(), tok, out)
        assert ended[1].sum() == len(new[1]) - 1 and not ended[0].any()
        assert np.abs(plain - prefixes(model, tok, out)[: len(plain)])[-1].max() > 1e-3


def test_what_is_the_default():
    assert default_decoding(model_of()) == default_decoding(model_of(), TRAINED + 1) == Recomputed()
    assert type(default_decoding(model_of(), TRAINED)) is Decoding
    for model in (model_of(layers=1), model_of(DYNAMIC[0]), model_of('rope()')):
        assert type(default_decoding(model)) is Decoding
    for mode in ('short', 'long'):
        assert (
            type(default_decoding(model_of(f'rope(freqs={LISTS.format(f", mode={mode!r}")})')))
            is Decoding
        )


def test_models_that_do_not_fit():
    with pytest.raises(
        ValueError, match='frequencies that follow the length.* those of this model do not'
    ):
        generate(
            model_of('rope()'), TOKENS, max_new_tokens=1, temperature=0.0, decoding=Recomputed()
        )
