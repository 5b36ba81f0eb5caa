"""DuoAttention: gates and masks of the sheet, decoding with dropped keys against the deployed pass
over everything.
"""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.lab.decoding import decode as plain
from posenc_jax.lab.decoding.decode import init_cache
from posenc_jax.lab.decoding.duo_attention import (
    DuoAttention,
    deploy,
    heads_of,
    retrieval_heads,
    with_mask,
)
from posenc_jax.lab.decoding.duo_attention.cache import decode_step, prefill, streaming
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.tasks.retrieval import Passkeys
from posenc_jax.lab.train.duo_gates import gate_loss, mixed_hidden, train_gates
from posenc_jax.protocol.composite import parts_of
from posenc_jax.protocol.conflicts import chain
from posenc_jax.protocol.masks import Causal
from tests.golden_files import golden, golden_suite
from tests.lab.decoding import passes
from tests.lab.decoding.passes import one_pass
from tests.refusals import check_refused

TEXT = np.random.default_rng(0).integers(0, 13, (2, 18))
RETRIEVAL = np.array(
    [[True, False], [False, False], [True, True]]
)  # layers with some, none, and all of them
step, prefill_of_heads = (
    jax.jit(decode_step),
    jax.jit(prefill, static_argnames=('last', 'full', 'heads')),
)
mixed_of = jax.jit(mixed_hidden, static_argnames=('sink', 'recent'))
hidden_of = jax.jit(lambda model, text: model.hidden(text))
model_of = functools.partial(passes.model_of, layers=3)


def compiled_prefill(model, cache, prompts, **options):
    return prefill_of_heads(model, cache, prompts, heads=heads_of(model), **options)


# Gates.


def keys_seen(sink, recent, retrieval, heads):
    """How many keys a token of head 0 sees."""
    mask = DuoAttention(sink, recent, retrieval, heads, heads)
    return mask.mask(*[pj.Tokens.of(length=8)] * 2)[0].sum(-1)[0]


def loss_of_gates(gates):
    nothing = jnp.zeros((1, 1, 2))
    return gate_loss(nothing, nothing, jnp.ones((1, 1)), gates, 1.0)


test_golden = golden_suite(
    'duo_attention',
    {
        'l1_of_new_gates': lambda: loss_of_gates(jnp.ones((2, 4))),
        'deployed_keys': lambda: keys_seen(1, 2, (1,), 2),
        'trained_keys': lambda: keys_seen(1, 1, (), 1),  # i - j < 2
    },
)


def test_golden_heads():
    case = golden('duo_attention')['values']
    gates = np.array(case['gates'])
    for rule, value in (('sparsity', 0.5), ('sparsity', 0.25), ('threshold', 0.5)):
        found = retrieval_heads(gates, **{rule: value})
        np.testing.assert_array_equal(found, np.array(case[f'{rule}_{value}'], bool))
    assert retrieval_heads(gates, sparsity=0.0).all()
    assert retrieval_heads(gates, sparsity=1.0).sum() == 1
    retrieval = DuoAttention(1, 2, (1,), 2, 2).mask(*[pj.Tokens.of(length=8)] * 2)[0, 1]
    np.testing.assert_array_equal(retrieval.sum(-1), np.arange(1, 9))
    grouped = DuoAttention(1, 2, (1,), 4, 2)
    assert grouped.retrieval[...].tolist() == [False, False, True, True]


@pytest.mark.full
def test_gates_of_one_are_the_model_and_of_none_the_streaming_model():
    model, text = model_of(), jnp.asarray(TEXT)
    base = hidden_of(model, text)
    mixed = lambda value, **mask: mixed_of(model, np.full((3, 2), value, np.float32), text, **mask)
    np.testing.assert_allclose(mixed(1.0, sink=1, recent=3), base, atol=2e-6)
    np.testing.assert_allclose(
        mixed(0.0, sink=4, recent=14), base, atol=2e-6
    )  # everything is near enough
    streaming = hidden_of(deploy(model, np.zeros((3, 2), bool), sink=1, recent=2), text)
    np.testing.assert_allclose(
        mixed(0.0, sink=1, recent=3), streaming, atol=2e-6
    )  # < 3 in training is <= 2 deployed
    assert np.abs(streaming - base).max() > 1e-2


def test_gates_of_one_are_a_model_that_places_tokens_by_ids():
    model, text = model_of(encoding='bipe(separators=(1, 3)) | rope()'), jnp.asarray(TEXT)
    mixed = mixed_of(model, np.ones((3, 2), np.float32), text, sink=1, recent=2)
    np.testing.assert_allclose(mixed, hidden_of(model, text), atol=2e-6)


def test_the_loss_reads_supervised_tokens_and_sends_no_gradient_to_the_full_path():
    full, mixed = np.random.default_rng(0).standard_normal((2, 2, 3, 4), dtype=np.float32)
    mask = np.float32([[0, 1, 0], [1, 0, 1]])
    expected = np.square(full - mixed).mean(-1)[mask == 1].mean()
    both = jax.jit(jax.value_and_grad(gate_loss, (0, 1)))
    loss, _ = both(full, mixed, mask, np.zeros((1, 1), np.float32))
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    to_full, to_mixed = map(np.asarray, both(full, mixed, mask, np.ones((1, 1), np.float32))[1])
    assert not to_full.any() and (np.abs(to_mixed).sum(-1) > 0).tolist() == (mask == 1).tolist()


@pytest.mark.full
def test_training_keeps_the_head_whose_far_keys_matter():
    """Of two heads, the result of one is thrown away by the output projection: nothing but the
    regulariser moves its gate.
    """
    task = Passkeys(keys=1, words=2, alphabet=4, fillers=2)
    cfg = TransformerConfig(
        vocab_size=9, train_len=24, layers=1, width=16, heads=2, encoding='rope()'
    )
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    out = model.blocks[0].attention.w_out
    out[...] = out[...].at[:, 0].set(0.0).at[:, 1].multiply(4.0)
    batches = (task.sample(np.random.default_rng(seed), 4, 24) for seed in range(60))
    gates, losses = train_gates(
        model, batches, steps=60, sink=1, recent=3, learning_rate=0.05, progress=False
    )
    assert gates.shape == (1, 2) and losses.shape == (60,) and losses[-1] < losses[0]
    assert gates[0, 0] < 0.05 < 0.3 < gates[0, 1]
    assert retrieval_heads(gates, sparsity=0.5).tolist() == [[False, True]]


@pytest.mark.full
def test_training_of_gates_step_by_step():
    """Gates clamped before every step, a rate that rises and falls over a fifth of the steps each,
    0.05 of the mean gate.
    """
    task, steps = Passkeys(keys=1, words=2, alphabet=4, fillers=2), 10
    cfg = TransformerConfig(
        vocab_size=9, train_len=24, layers=1, width=16, heads=2, encoding='rope()'
    )
    model = Transformer(cfg, rngs=nnx.Rngs(0))
    batches = [task.sample(np.random.default_rng(seed), 2, 16) for seed in range(steps)]
    found, losses = train_gates(
        model, batches, steps=steps, sink=1, recent=3, learning_rate=0.4, progress=False
    )

    rates = 0.4 * np.array([0.5, 1, 1, 1, 1, 1, 1, 1, 1, 0.5])
    optimizer = optax.adam(lambda count: jnp.asarray(rates)[count])
    gates, low = jnp.ones((1, 2)), 1.0
    state = optimizer.init(gates)

    def loss_of(gates, tokens, mask):
        distance = (
            (model.hidden(tokens) - mixed_hidden(model, gates, tokens, sink=1, recent=3)) ** 2
        ).mean(-1)
        return (distance * mask).sum() / mask.sum() + 0.05 * jnp.abs(gates).mean()

    value_and_gradient = jax.jit(jax.value_and_grad(loss_of))
    for number, batch in enumerate(batches):
        low = min(low, float(gates.min()))
        gates = jnp.clip(gates, 0.0, 1.0)
        loss, gradient = value_and_gradient(
            gates, jnp.asarray(batch['tokens']), jnp.asarray(batch['loss_mask'])
        )
        assert float(losses[number]) == pytest.approx(float(loss), rel=1e-4)
        updates, state = optimizer.update(gradient, state)
        gates = gates + updates
    assert low < 0  # the clamp is met
    np.testing.assert_allclose(found, np.clip(gates, 0, 1), atol=1e-4)
    assert inspect.signature(train_gates).parameters['steps'].default == 2000


# Deployed.


def test_deployed_heads_say_what_they_are():
    model = deploy(model_of(), RETRIEVAL, sink=1, recent=2)
    assert heads_of(model) == tuple(map(tuple, RETRIEVAL.tolist()))
    again = deploy(model, ~RETRIEVAL, sink=2, recent=3)
    assert heads_of(again) == tuple(map(tuple, (~RETRIEVAL).tolist()))
    np.testing.assert_array_equal(
        one_pass(deploy(again, RETRIEVAL, sink=1, recent=2), jnp.asarray(TEXT)),
        one_pass(model, jnp.asarray(TEXT)),
    )
    everything = deploy(model_of(), np.ones((3, 2), bool), sink=1, recent=2)
    np.testing.assert_allclose(
        one_pass(everything, jnp.asarray(TEXT)), one_pass(model_of(), jnp.asarray(TEXT)), atol=2e-5
    )


def decoded(model, tok, prompt, **options):
    """Logits of every token from the last of the prompt on."""
    read = jax.jit(lambda prompt: prefill(model, init_cache(model, tok), prompt, last=1, **options))
    logits, cache = read(TEXT[:, :prompt])
    rows, cache = passes.stepped(model, cache, TEXT[:, prompt:], step)
    return np.concatenate([logits, rows], axis=1), cache


@pytest.mark.parametrize(
    'encoding, sink, recent, prompt',
    [
        ('rope()', 4, 1, 2),  # a prompt shorter than the sinks
        ('alibi()', 0, 5, 7),  # parameters per head, no sinks
        ('learned_absolute(max_len=18) | kerple()', 3, 40, 6),  # more room than text
        ('bipe(separators=(1, 3)) | rope()', 1, 4, 7),  # tokens placed by ids, as they become known
    ],
)
@pytest.mark.full
def test_decoding_equals_the_deployed_pass(encoding, sink, recent, prompt):
    model = deploy(model_of(encoding=encoding), RETRIEVAL, sink=sink, recent=recent)
    ours, cache = decoded(model, pj.Tokens.of(length=TEXT.shape[1]), prompt)
    np.testing.assert_allclose(ours, one_pass(model, jnp.asarray(TEXT))[:, prompt - 1 :], atol=5e-5)
    assert int(cache.cursor) == TEXT.shape[1]


def test_a_single_row_is_written_without_its_axis():
    model, text = deploy(model_of(), RETRIEVAL, sink=1, recent=2), jnp.asarray(TEXT[:1, :12])
    _, cache = compiled_prefill(model, init_cache(model, pj.Tokens.of(length=12)), text[:, :9])
    logits, _ = passes.stepped(model, cache, text[:, 9:], step)
    np.testing.assert_allclose(logits, one_pass(model, text)[:, 9:], atol=5e-5)


@pytest.mark.full
def test_rows_with_padding_in_front():
    model = deploy(model_of(), RETRIEVAL, sink=2, recent=3)
    valid = np.arange(TEXT.shape[1])[None] >= np.array([[0], [4]])
    tok = pj.Tokens.of(valid=valid)
    ours, _ = decoded(model, tok, 6)
    np.testing.assert_allclose(ours, one_pass(model, jnp.asarray(TEXT), tok)[:, 5:], atol=5e-5)


def test_a_prompt_read_in_full_is_that_of_the_base_model():
    model = deploy(model_of(), RETRIEVAL, sink=1, recent=2)
    full, _ = compiled_prefill(
        model, init_cache(model, pj.Tokens.of(length=20)), jnp.asarray(TEXT), full=True
    )
    np.testing.assert_allclose(full, one_pass(model_of(), jnp.asarray(TEXT)), atol=2e-5)
    assert np.abs(full - one_pass(model, jnp.asarray(TEXT))).max() > 1e-2


def test_streaming_heads_keep_a_constant_number_of_keys():
    model = deploy(model_of(), RETRIEVAL, sink=2, recent=3)
    size = lambda n: prefill(model, init_cache(model, pj.Tokens.of(length=n)), TEXT)[1].nbytes
    sizes = []
    for n in (50, 100):
        jax.eval_shape(lambda: sizes.append(size(n)))
    key = 4 * 2 * 2 * 4  # float32, keys and values, rows, head width
    retrieval, streaming = RETRIEVAL.sum(), (~RETRIEVAL).sum()
    assert sizes == [key * (retrieval * n + streaming * 6) for n in (50, 100)]


@pytest.mark.full
def test_generation_drops_keys_and_says_what_the_deployed_pass_says():
    model = deploy(model_of(), RETRIEVAL, sink=1, recent=2)
    out, alone = (
        generate(model, TEXT[:rows, :8], max_new_tokens=6, temperature=0, decoding=streaming(model))
        for rows in (2, 1)
    )
    np.testing.assert_array_equal(alone, out[:1])
    np.testing.assert_array_equal(out[:, 8:], one_pass(model, out).argmax(-1)[:, 7:-1])
    empty = init_cache(model, pj.Tokens.of(length=400))
    kept = jax.eval_shape(lambda text: streaming(model).prefill(model, empty, text)[1], TEXT)
    assert kept.layers[1].kept_k.shape == (2, 2, 4, 4) and kept.layers[1].k.size == 0


# Wrong input.


@pytest.mark.full
def test_what_cannot_be_is_refused():
    model, text = model_of(), jnp.asarray(TEXT)
    gates, deployed = jnp.ones((3, 2)), deploy(model, RETRIEVAL)
    empty = init_cache(deployed, pj.Tokens.of(length=20))
    plain_cache = passes.prompt(deployed, empty, text)[1]
    write = lambda model, decoding: generate(
        model, TEXT, max_new_tokens=2, temperature=0, decoding=decoding
    )
    dynamic, mixing = (
        deploy(model_of(encoding=spec), RETRIEVAL)
        for spec in ('rope(freqs=dynamic_ntk())', 'rope() | dape(width=4)')
    )
    of_tokens = lambda own=deployed, **tok: init_cache(own, pj.Tokens.of(**tok or dict(length=20)))
    begin = lambda prompts=text, **tok: prefill(deployed, of_tokens(**tok), prompts)
    cache = compiled_prefill(deployed, of_tokens(), text)[1]
    hole, right = np.ones((2, 20), bool), np.ones((2, 20), bool)
    hole[1, 5], right[0, 16:18] = False, False
    of_gates = lambda gates, recent=2: mixed_hidden(model, gates, text, sink=1, recent=recent)
    train = lambda batches=(), **options: train_gates(model, batches, progress=False, **options)
    unknown = {'tokens': text + 13, 'loss_mask': jnp.ones(text.shape)}
    elsewhere = deploy(model, ~RETRIEVAL)
    calls = {
        'sparsity lies in 0 .. 1, got 1.5; nearest: 1': lambda: retrieval_heads(
            gates, sparsity=1.5
        ),
        'threshold lies in 0 .. 1 as gates do, got 5.0': lambda: retrieval_heads(
            gates, threshold=5.0
        ),
        'got nan': lambda: retrieval_heads(gates, threshold=float('nan')),
        r'\[layers, kv_heads\], got \(2,\)': lambda: retrieval_heads(gates[0], sparsity=0.5),
        r'0 .. 1, got 2.0 .. 2.0': lambda: retrieval_heads(2 * gates, sparsity=0.5),
        r'got \(0, 2\); at least 1 of each': lambda: retrieval_heads(gates[:0], sparsity=0.5),
        'a sparsity or a threshold': lambda: retrieval_heads(gates),
        r'\(3, 2\) layers and key heads, got bool \(2, 3\)': lambda: deploy(model, RETRIEVAL.T),
        'at least 1 recent key, got recent=0': lambda: deploy(model, RETRIEVAL, recent=0),
        'sink must be at least 0, got -1': lambda: deploy(model, RETRIEVAL, sink=-1),
        'found none in lm_infinite': lambda: deploy(
            model_of(encoding='lm_infinite(encoding=rope())'), RETRIEVAL
        ),
        'found 2 in causal': lambda: with_mask(
            chain(Causal(), Causal()), DuoAttention(1, 2, (), 2, 2)
        ),
        'sink must be a whole number, got 1.5': lambda: DuoAttention(1.5, 2, (), 2, 2),
        'the cache has 3 rows, the prompts 2': lambda: begin(valid=np.ones((3, 20), bool)),
        r'integers \[B, T\] .*got int32 \(18,\)': lambda: begin(text[0]),
        'slot 5 of row 1 is padding behind a token': lambda: begin(valid=hole),
        'slot 16 of row 0 is padding behind a token': lambda: begin(valid=right),
        r'each of 2 rows, got int32 \(1,\)': lambda: decode_step(deployed, cache, text[0, :1]),
        r'key heads of 0 .. 1, each once; got \(2,\)': lambda: DuoAttention(1, 2, (2,), 4, 2),
        r'3 layers and 2 key heads, got \(2, 3\)': lambda: of_gates(gates.T),
        'recent=0': lambda: of_gates(gates, recent=0),
        r'gates must lie in 0 \.\. 1, got 5 \.\. 5': lambda: of_gates(5 * gates),
        '2 steps need as many batches, got 0': lambda: train(steps=2),
        'at least 1, an integer, got 1.5': lambda: train(steps=1.5),
        'weight >= 0 and learning_rate > 0, got weight=0.05, learning_rate=-1.0': lambda: train(
            learning_rate=-1.0
        ),
        'got weight=-3.0': lambda: train(weight=-3.0),
        r'token ids lie in 0 \.\. 12 \(vocab_size\), got 13': lambda: train([unknown], steps=1),
        'this cache is for duo_attention.* got rope': lambda: prefill(
            model, of_tokens(model), text
        ),
        '18 tokens do not fit a cache of 10': lambda: begin(length=10),
        'needs an empty cache': lambda: prefill(deployed, cache, text),
        'duo_attention.prefill first': lambda: decode_step(deployed, empty, text[:, 0]),
        'cache of DuoLayers, .* this one holds LayerCaches': lambda: decode_step(
            deployed, plain_cache, text[:, 0]
        ),
        'cache of LayerCaches, .* this one holds DuoLayers': lambda: plain.decode_step(
            deployed, cache, text[:, 0]
        ),
        'differs from the model in layer 0; use streaming': lambda: write(
            elsewhere, streaming(deployed)
        ),
        'got rope': lambda: write(model_of(layers=1), streaming(deployed)),
        'packed documents; give each a row': lambda: begin(segment=np.zeros((1, 20), int)),
        'but rope reads more': lambda: prefill(dynamic, of_tokens(dynamic), text),
        'but dape reads more than .* one head': lambda: prefill(mixing, of_tokens(mixing), text),
    }
    check_refused(calls)


def test_a_full_cache_takes_no_more():
    model = deploy(model_of(), RETRIEVAL)
    _, cache = compiled_prefill(
        model, init_cache(model, pj.Tokens.of(length=18)), jnp.asarray(TEXT)
    )
    with pytest.raises(ValueError, match='18 slots is full'):
        decode_step(model, cache, jnp.asarray(TEXT[:, 0]))


def test_the_mask_alone_is_an_encoding():
    part = parts_of(
        pj.make('rope() | duo_attention(sink=1, recent=2)', heads=2, head_dim=8, causal=True)
    )[1]
    assert not part.retrieval[...].any() and part.traits == {'decides_causality', 'leaves_gaps'}
