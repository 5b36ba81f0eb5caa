"""Attention whose keys travel round the devices is attention on one device."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import PartitionSpec

import posenc_jax as pj
from benchmarks.ring import temporary
from posenc_jax.attention import ring
from posenc_jax.attention.arguments import _READS_ALL
from posenc_jax.attention.sweep import combine, partition
from posenc_jax.attention.tiles import Blocks, Plan, sweep_order
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.layer.sharded_attend import sharded_attend
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.protocol.tokens import Tokens
from posenc_jax.testing.subject import (
    HEADS,
    KV_HEADS,
    PADDED,
    WIDTH,
    draw,
    earlier_rows,
    project,
    split,
    tiles_of,
    tokens,
)
from tests import contract_test

ROWS, LENGTH, MODEL = 2, 32, 32
DOCUMENTS = np.array([[0] * 11 + [1] * 21, [0] * 20 + [1] * 3 + [2] * 9])
LEFT_PADDED = np.arange(LENGTH)[None] >= np.array([[5], [0]])
TEXTS = {
    'one document': dict(),
    'packed': dict(segment=DOCUMENTS),
    'left padding': dict(valid=LEFT_PADDED),
}
# Packed documents in one row, and one document behind padding in the other.
MIXED = dict(segment=DOCUMENTS * [[1], [0]], valid=LEFT_PADDED[::-1])
WEIGHTS = {
    name: draw(number, MODEL, heads, WIDTH) / 4
    for number, (name, heads) in enumerate(dict(q=HEADS, k=KV_HEADS, v=KV_HEADS).items())
}


def mesh_of(**axes):
    return make_mesh(data=axes.pop('data', 1), devices=jax.devices()[:8], **axes)


def gradients_and_results(block, one_text=True, **options):
    """A function of an encoding and the arguments of attention: the gradients of a loss by all
    parameters, queries, keys, values and floats of tokens, and the results of which it is the sum.
    With `one_text`, queries and keys share their index, as in a model.
    """

    def loss(floats, graphdef, constants, others, cotangent):
        params, q, k, v, *of_tokens = floats
        tq, tk = map(combine, of_tokens, others)
        if one_text:
            tk = dataclasses.replace(tk, index=tq.index)
        encoding = nnx.merge(graphdef, params, constants)
        how = dict(block=tiles_of(encoding, block, tk.length), return_lse=True, **options)
        out, lse = sharded_attend(encoding, q, k, v, tq, tk, **how)
        seen = jnp.where(jnp.broadcast_to(tq.valid, lse.shape[:2])[..., None], lse, 0)
        seen = jnp.where(seen > -1e28, seen, 0)
        real = jnp.where(tq.valid[..., None, None], out, 0)
        return (real * cotangent).sum() + (seen * cotangent.mean(-1)).sum(), (real, seen)

    return jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)


def arguments(encoding, length=LENGTH, heads_first=False, dtype=jnp.float32, **text):
    x, weights = jax.tree.map(lambda a: a.astype(dtype), (draw(7, ROWS, length, MODEL), WEIGHTS))
    tok = tokens(length=length, rows=ROWS, **text)
    q, k, v, tq, tk = project(encoding, weights, x, tok)
    if heads_first:
        k, v = (jnp.swapaxes(a, 1, 2) for a in (k, v))
    graphdef, params, constants = nnx.split(encoding, nnx.Param, ...)
    (tq, others_q), (tk, others_k) = map(partition, (tq, tk))
    floats = params, q, k, v, tq, tk
    return floats, graphdef, constants, (others_q, others_k), draw(8, *q.shape)


def same(ours, theirs):
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        least = 1e-5 * max(1.0, float(np.abs(other).max()))
        np.testing.assert_allclose(one, other, atol=least, rtol=1e-5)


def compare(encoding, mesh, texts, block=(4, 2), **options):
    here, there = (gradients_and_results(block, **options) for _ in range(2))
    for text in texts:
        given = arguments(encoding, **text, **options)
        expected = here(*given)
        with jax.set_mesh(mesh):
            found = there(*given)
        same(found, expected)


def entry_of(key):
    (entry,) = (entry for entry in contract_test.ENTRIES if contract_test.id_of(entry) == key)
    return entry


@pytest.mark.full_where(condition=lambda spec: spec not in ('alibi()', 'tra()'))
@pytest.mark.parametrize(
    'spec', ['alibi()', 'tra()', 'cope()', 't5_rpe() | window(size=5)', 'toy_sink()']
)
def test_a_ring_of_four_devices(toys, spec):
    encoding = pj.make(spec, causal=True, **contract_test.CONTEXT)
    compare(encoding, mesh_of(tensor=2, sequence=4), [TEXTS['packed']], block=(4, 4))


def one_for_many_devices(entry):
    """The encoding of a representative, or one with a carry; the others skip the test."""
    encoding = contract_test.make(entry)
    representative = contract_test.id_of(entry) in contract_test.REPRESENTATIVES
    if not representative and not encoding.opens('first_carry'):
        pytest.skip('it has no carry, and the representatives have its doors')
    return encoding


@pytest.mark.full
@contract_test.every_entry
def test_eight_devices_in_a_ring(entry):
    """A ring of two is in the law `mesh`, for all but those that differ in numbers alone from one
    that has it. More devices pass on what the first two pass on, apart from a carry.
    """
    compare(one_for_many_devices(entry), mesh_of(sequence=8), [MIXED])


@pytest.mark.full
@pytest.mark.parametrize('spec', ['cope()', 'path()', 'cable()', 'carope()'])
def test_a_carry_in_a_ring_of_halves(spec):
    """Eight devices, and two whose halves are no whole number of blocks."""
    encoding = pj.make(spec, causal=True, **contract_test.CONTEXT)
    compare(encoding, mesh_of(sequence=8), [TEXTS['one document']])
    compare(encoding, mesh_of(tensor=2, data=2, sequence=2), [TEXTS['left padding']], block=(5, 3))


@pytest.mark.full
@pytest.mark.parametrize('axes', [dict(data=2, sequence=4), dict(tensor=2, sequence=4)], ids=str)
@pytest.mark.parametrize('key', ['t5_rpe', 'cope', 'shaw', 'path'])
def test_a_ring_beside_other_axes(axes, key):
    compare(contract_test.make(entry_of(key)), mesh_of(**axes), TEXTS.values())


@pytest.mark.full
@pytest.mark.parametrize('spec', ['rope()', 'alibi_symmetric()', 'shaw()', 'prefix(length=9)'])
def test_queries_that_see_later_keys(spec):
    causal = spec.startswith('prefix')
    encoding = pj.make(spec, causal=causal, **contract_test.CONTEXT)
    compare(encoding, mesh_of(sequence=8), TEXTS.values())


def ring_of(devices):
    types = (jax.sharding.AxisType.Auto,)
    return jax.make_mesh((devices,), ('ring',), axis_types=types, devices=jax.devices()[:devices])


def dealt(index, devices, back=False):
    mesh = ring_of(devices)
    cut = PartitionSpec('ring')
    exchange = functools.partial(ring.deal, axis_name='ring', axis=0, back=back)
    return jax.shard_map(exchange, mesh=mesh, in_specs=cut, out_specs=cut)(index)


@pytest.mark.parametrize('devices', [1, 2, 3, 8])
def test_halves_are_dealt_from_both_ends_and_come_back(devices):
    index = jnp.arange(4 * devices)
    found = dealt(index, devices)
    for d, own in enumerate(np.split(np.asarray(found), devices)):
        last = 2 * devices - 1 - d
        assert own.tolist() == [2 * d, 2 * d + 1, 2 * last, 2 * last + 1]
    np.testing.assert_array_equal(dealt(found, devices, back=True), index)


def test_causal_work_is_even():
    """The key blocks that each device computes, in its sweeps over the keys of all devices."""
    devices, size, length = 8, 8, 512
    encoding = pj.make('nope()', causal=True)
    plan = Plan(None, *(Blocks(size, 1),) * 3, ())

    @jax.jit
    @functools.partial(jax.vmap, in_axes=(0, None))
    @functools.partial(jax.vmap, in_axes=(None, 0))
    @functools.partial(jax.vmap, in_axes=(0, None))
    def visited(block, keys):
        own, other = Tokens.of(index=block[None]), Tokens.of(index=keys[None])
        return sweep_order(plan, encoding, own, other)[1]

    def work(index):
        parts = index.reshape(devices, -1)
        return visited(parts.reshape(devices, -1, size), parts).sum((1, 2))

    contiguous, even = work(jnp.arange(length)), work(dealt(jnp.arange(length), devices))
    blocks = length // size
    assert contiguous.sum() == even.sum() == blocks * (blocks + 1) // 2
    assert contiguous.max() > 10 * contiguous.min()
    assert even.max() <= 1.1 * even.min()


@pytest.mark.parametrize('step', [1, -1])
def test_work_with_a_carry_is_even(step):
    """Which halves of the keys each half of the queries meets, and where a carry is stored."""
    devices, size = 4, 2
    encoding = pj.make('cope()', causal=True, **contract_test.CONTEXT)
    plan = Plan(None, *(Blocks(size, 1),) * 3, (), ring='ring', nodes=2)
    halves = 2 * devices

    def visits(index):
        trip = ring._Trip(plan, encoding, step)

        def meet(state, sums, keys, n, slot):
            number, met = state
            own = jax.lax.dynamic_slice_in_dim(index, n * size, 1)[0] // size
            met = met.at[number].set(jnp.stack([own, keys[-1].index[0, 0] // size, slot]))
            return (number + 1, met), sums + 1

        first, second = (Tokens.of(index=a[None]) for a in jnp.split(index, 2))
        state = 0, jnp.full((4 * devices, 3), -1)
        sums = [jnp.zeros((), int)] * 2
        (number, met), sums = trip.run(
            Tokens.of(index=index[None]), meet, state, [(first,), (second,)], sums
        )
        return number[None], met[None], jnp.stack(sums)

    cut = PartitionSpec('ring')
    run = jax.shard_map(
        lambda index: visits(ring.deal(index, 'ring', 0)),
        mesh=ring_of(devices), in_specs=cut, out_specs=cut, check_vma=False,
    )  # fmt: skip
    numbers, met, sums = jax.jit(run)(jnp.arange(halves * size))
    assert numbers.tolist() == [halves + 1] * devices
    for d, of_device in enumerate(np.asarray(met)[:, : halves + 1]):
        assert sorted(of_device[:, 2].tolist()) == list(range(halves + 1))
        for own in (d, halves - 1 - d):
            order = of_device[of_device[:, 0] == own, 1].tolist()
            assert order == list(range(own, -1, -1))[::step]
        # What travels with a half of the keys is back, and later halves of queries have met it.
        assert sums[2 * d : 2 * d + 2].tolist() == [halves - d, d + 1]


@pytest.mark.parametrize('remat', ['none', 'full'])
def test_a_model_shows_that_queries_and_keys_are_one_text(remat, monkeypatch):
    plans = []
    watch: Any = lambda plan, *arrays: plans.append(plan) or ring.forward(plan, *arrays)
    watch = jax.custom_vjp(watch, nondiff_argnums=(0,))
    watch.defvjp(ring.tiles.fwd, ring.tiles.bwd)  # the test takes no gradients
    monkeypatch.setattr(ring, 'tiles', watch)
    cfg = TransformerConfig(
        vocab_size=8, train_len=16, layers=2, width=16, heads=2, encoding='cope()', remat=remat
    )
    parts = nnx.split(nnx.eval_shape(lambda: Transformer(cfg, rngs=nnx.Rngs(0))))
    with jax.set_mesh(mesh_of(sequence=8)):
        run = lambda state, tokens: nnx.merge(parts[0], state)(tokens)
        jax.eval_shape(run, parts[1], jax.ShapeDtypeStruct((1, 16), jnp.int32))
    assert plans and all(plan.nodes == 2 for plan in plans)


def in_a_ring(spec, check_vma, **options):
    encoding = pj.make(spec, causal=True, **contract_test.CONTEXT)
    tok = pj.Tokens.of(length=16)

    def run(q, k, v, tq, tk, axis_name):
        return pj.attend(
            encoding, q, k, v, tq, tk, axis_name=axis_name, applied=pj.TOKEN_STAGE, **options
        )

    cut = PartitionSpec(None, 'ring')
    ringed = jax.shard_map(
        functools.partial(run, axis_name='ring'),
        mesh=ring_of(4), in_specs=cut, out_specs=cut, check_vma=check_vma,
    )  # fmt: skip
    whole = functools.partial(run, axis_name=None)
    arrays = [draw(n, 1, 16, heads, WIDTH) for n, heads in enumerate((HEADS, KV_HEADS, KV_HEADS))]
    both = lambda run: lambda *qkv: run(*encoding.project(*qkv, tok, tok))
    return both(ringed), both(whole), arrays


@pytest.mark.full
@pytest.mark.parametrize('check_vma', [True, False])
@pytest.mark.parametrize('spec', ['rope()', 'cope()', 't5_rpe()'])
def test_a_mesh_of_the_caller(spec, check_vma):
    ringed, whole, arrays = in_a_ring(spec, check_vma)
    of = lambda run: jax.jit(jax.value_and_grad(lambda *a: jnp.sin(run(*a)).mean(), (0, 1, 2)))
    same(of(ringed)(*arrays), of(whole)(*arrays))


@pytest.mark.full
@pytest.mark.parametrize('spec', ['alibi()', 'cope()'])
def test_forward_mode_of_the_dense_form_in_a_ring(spec):
    ringed, whole, arrays = in_a_ring(spec, False, implementation='dense')
    tangents = [jnp.cos(a) for a in arrays]
    same(jax.jvp(ringed, arrays, tangents), jax.jvp(whole, arrays, tangents))


@pytest.mark.full
@pytest.mark.parametrize('spec', ['t5_rpe()', 'cope()'])
def test_all_keys_may_be_earlier_than_all_queries(spec):
    """Keys of another text of the same length, such as a memory: the nearest come last in it."""
    encoding = pj.make(spec, causal=True, **contract_test.CONTEXT)
    floats, graphdef, constants, (tq, tk), cotangent = arguments(encoding)
    tq = dataclasses.replace(tq, index=tq.index + LENGTH, rank=tq.rank + LENGTH)
    tq = dataclasses.replace(tq, pos=tq.pos + LENGTH)
    given = floats, graphdef, constants, (tq, tk), cotangent
    expected = gradients_and_results((4, 4), one_text=False)(*given)
    with jax.set_mesh(mesh_of(sequence=8)):
        same(gradients_and_results((4, 4), one_text=False)(*given), expected)


# Encodings with a door that reads the whole text, and the door. The first are also computed.
WHOLE = {
    'rope(freqs=dynamic_ntk(factor=2.0, train_len=8))': 'project',
    'lm_infinite(encoding=rope(), n_global=1, n_local=4, top_k=2, distance=4)': 'project',
    'reverse_pe() | rope()': 'place',
}
ALSO_WHOLE = {
    'learned_absolute(8, overflow="interpolate")': 'place',
    'bipe(separators=[1])': 'place',
    'v2pe(delta=0.5)': 'place',
    'randomized_pe(max_len=64) | rope()': 'place',
    'dpe() | full()': 'embed',
}


def on_two_devices(spec, inside, check_vma=False, **options):
    """The results of a ring in a `shard_map` of the caller, and those of one device."""
    encoding = pj.make(spec, causal=True, **contract_test.CONTEXT)
    arrays = [draw(n, 1, 16, heads, WIDTH) for n, heads in enumerate((HEADS, KV_HEADS, KV_HEADS))]
    tok = pj.Tokens.of(length=16, ids=jnp.arange(16)[None] % 3)

    def projected(q, k, v, tok):
        tok = encoding.place(tok)
        return encoding.project(q, k, v, tok, tok)

    def run(*given: Any, axis_name=None, **options):
        given = projected(*given) if inside else given
        how = dict(axis_name=axis_name, applied=pj.TOKEN_STAGE, **options)
        return pj.attend(encoding, *given, **how)

    cut = PartitionSpec(None, 'ring')
    ringed = jax.shard_map(
        functools.partial(run, axis_name='ring', **options),
        mesh=ring_of(2), in_specs=cut, out_specs=cut, check_vma=check_vma,
    )  # fmt: skip
    given: Any = (*arrays, tok) if inside else projected(*arrays, tok)
    return jax.jit(ringed)(*given), jax.jit(run)(*given)


def test_doors_on_the_part_of_a_device():
    same(*on_two_devices('rope()', True))
    same(*on_two_devices('cope()', True, check_vma=True))
    for spec, door in {**WHOLE, **ALSO_WHOLE}.items():
        message = f'reads the whole text in `{door}`.*Call {door} outside.*applied_outside=True; or'
        with pytest.raises(ValueError, match=message):
            on_two_devices(spec, True)


@pytest.mark.full
@pytest.mark.parametrize('spec', WHOLE)
def test_doors_outside_of_the_ring(spec):
    same(*on_two_devices(spec, False, applied_outside=True))


@pytest.mark.full
@contract_test.every_entry
def test_an_encoding_says_whether_project_reads_the_whole_text(entry):
    """Two halves that are projected apart are the projected whole, unless a trait denies it."""
    encoding = contract_test.make(entry)
    says = encoding.traits & _READS_ALL['project']
    if says or not encoding.opens('project'):
        return
    tok = encoding.place(tokens())
    x = encoding.embed(draw(7, ROWS, tok.length, MODEL), tok)
    rows = earlier_rows(x, tok, encoding.lookback)
    heads_of = split(encoding, WEIGHTS, x, rows, tok)
    size = tok.length // 2

    def part(start, length):
        cut = lambda a, more=0: a[:, start : start + length + more]
        own = tok.slice(start, length)
        q, k, v, tq, tk = encoding.project(
            *map(cut, heads_of), own, own, cut(rows, encoding.lookback)
        )
        return q, k, v, tq.feats, tk.feats

    halves = part(0, size), part(size, size)
    joined = jax.tree.map(lambda *a: jnp.concatenate(a, 1), *halves)
    gaps = jax.tree.map(lambda a, b: float(abs(a - b * 1.0).max()), joined, part(0, tok.length))
    assert max(jax.tree.leaves(gaps)) < 1e-4, gaps


@pytest.mark.full
def test_memory_falls_with_the_number_of_devices():
    one, eight = (temporary('t5_rpe()', count, 8192, 1, width=64, heads=2) for count in (1, 8))
    assert eight < one / 5


@pytest.mark.full
@contract_test.every_entry
def test_an_encoding_says_whether_place_and_embed_read_the_whole_text(entry):
    """Two halves that are placed apart, or embedded apart, are halves of the whole, with a key too,
    unless a trait denies it.
    """
    encoding = contract_test.make(entry)
    free = [
        door for door in ('place', 'embed')
        if encoding.opens(door) and not encoding.traits & _READS_ALL[door]
    ]  # fmt: skip
    segment = np.array([[0] * 13 + [1] * 7, [0] * 4 + [1] * 16])
    tok = tokens(segment=segment, valid=PADDED)
    x = draw(7, ROWS, tok.length, MODEL)
    cuts = (0, 10), (10, 10)
    rows = lambda a: jnp.broadcast_to(a, (ROWS, *a.shape[1:]))
    joined = lambda parts: jax.tree.map(lambda *a: jnp.concatenate(a, 1), *parts)
    for key in (None, jax.random.key(0)) if free else ():
        placed = jax.tree.map(rows, encoding.place(tok, key=key))
        if 'place' in free:
            halves = [encoding.place(tok.slice(*cut), key=key) for cut in cuts]
            same(joined(jax.tree.map(rows, half) for half in halves), placed)
        if 'embed' in free:
            embed = lambda start, size: encoding.embed(
                x[:, start : start + size], placed.slice(start, size)
            )
            same(joined(embed(*cut) for cut in cuts), encoding.embed(x, placed))


def test_an_axis_that_nothing_cuts():
    tok, q = Tokens.of(length=4), draw(0, 1, 4, 2, 8)
    with pytest.raises(ValueError, match="axis_name='ring' is an axis of no jax.shard_map"):
        pj.attend(pj.make('alibi()', heads=2), q, q, q, tok, tok, axis_name='ring')
