"""Chains, exclusive doors, and default masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.attention.tiles import pair_logits
from posenc_jax.base.products import scaled_dot_product, weighted_sum
from posenc_jax.protocol import capabilities, conflicts
from posenc_jax.protocol.capabilities import Carries, SeveralInputs
from posenc_jax.protocol.composite import ChainedEncoding, parts_of
from posenc_jax.protocol.encoding import CAPABILITIES, DOORS, TRAITS, Encoding
from posenc_jax.protocol.errors import SpecError


class Doubling(Carries):
    """Every fold doubles or appends, so that order shows."""

    def __init__(self, name, number):
        self.name, self.number = name, number

    def embed(self, x, tok):
        return x * 10 + self.number

    def project(self, q, k, v, tq, tk, x=None):
        return q * 10 + self.number, k, v, tq.with_feats(**{self.name: tq.index}), tk

    def first_carry(self, q, tq):
        return jnp.full(q.shape[:3], float(self.number))

    def logits(self, s, q, k, tq, tk, seen, carry):
        return s * 10 + self.number, carry + 1


class OwnLogits(Encoding):
    traits = frozenset({'forms_logits'})

    def logits(self, s, q, k, tq, tk, seen, carry):
        return scaled_dot_product(q, k) + 1, carry


class OwnCollect(Encoding):
    def collect(self, w, v, tq, tk):
        return 2 * weighted_sum(w, v)


class Shuffled(Encoding):
    def place(self, tok, *, key=None):
        return (
            tok
            if key is None
            else tok.without_feats().with_feats(draw=jax.random.uniform(key, tok.index.shape))
        )


def kinds(encoding):
    return [type(part).__name__ for part in parts_of(encoding)]


def test_folds_run_in_chain_order():
    both, tok = pj.chain(Doubling('a', 1), Doubling('b', 2)), pj.Tokens.of(length=2)
    x = jnp.zeros((1, 2, 1, 4))
    assert float(both.embed(x, tok)[0, 0, 0, 0]) == 12
    q, _, _, tq, tk = both.project(x, x, x, tok, tok)
    assert float(q[0, 0, 0, 0]) == 12 and set(tq.feats) == {'a', 'b'} and not tk.feats
    carry = both.first_carry(jnp.zeros((1, 1, 2, 4)), tok)
    s, carry = both.logits(jnp.zeros((1, 1, 2, 2)), None, None, tok, tok, None, carry)
    assert float(s[0, 0, 0, 0]) == 12 and [float(c[0, 0, 0]) for c in carry] == [2, 3]


def test_chains_flatten_and_associate():
    a, b, c = Doubling('a', 1), Doubling('b', 2), Doubling('c', 3)
    left, right, flat = pj.chain(pj.chain(a, b), c), pj.chain(a, pj.chain(b, c)), pj.chain(a, b, c)
    for chained in (left, right, flat):
        assert [part.name for part in chained.parts] == ['a', 'b', 'c']
    assert pj.chain(a) is a and pj.chain(pj.chain(a)) is a


def test_conflicts_name_traits_and_doors_that_exist():
    for fact in {
        fact for conflict in conflicts.CONFLICTS for fact in (conflict.first, conflict.second)
    }:
        door = fact.removeprefix('opens ')
        if door != fact:
            assert door in (*DOORS, *CAPABILITIES), fact
        elif ' ' not in fact:
            assert fact in TRAITS, fact


def test_exclusive_doors_have_one_owner():
    with pytest.raises(
        SpecError, match='OwnLogits and OwnLogits both need to form the logits: nest'
    ):
        pj.chain(OwnLogits(), Doubling('a', 1), OwnLogits())
    with pytest.raises(SpecError, match="OwnCollect and OwnCollect.*'collect'"):
        pj.chain(OwnCollect(), pj.chain(OwnCollect(), Doubling('a', 1)))
    both = pj.chain(Doubling('a', 1), OwnLogits(), OwnCollect())
    q, tok = jax.random.normal(jax.random.key(0), (1, 2, 3, 4)), pj.Tokens.of(length=3)
    s, _, _ = pair_logits(both, q, q, tok, tok)
    np.testing.assert_allclose(s, 10 * (scaled_dot_product(q, q) + 1) + 1, rtol=1e-6)
    np.testing.assert_allclose(both.collect(s, q, tok, tok), 2 * weighted_sum(s, q), rtol=1e-6)


def test_caches_that_exclude_each_other():
    class Raw(Encoding):
        traits = frozenset({'follows_length'})

    class Evolving(Encoding):
        def update_keys(self, k, tk, new):
            return k

    assert (
        pj.chain(Raw(), Encoding()).cached == 'raw'
        and pj.chain(Encoding(), Evolving()).cached == 'evolving'
    )
    assert pj.chain(Encoding(), Encoding()).cached == 'encoded'
    with pytest.raises(SpecError, match='Evolving rewrites cached keys and Raw needs them raw'):
        pj.chain(Raw(), Evolving())


def test_lookback_rows_go_to_whom_they_belong():
    class Looking(Encoding):
        def __init__(self, rows):
            self.lookback = rows

        def project(self, q, k, v, tq, tk, x=None):
            return q, k, v, tq.with_feats(**{f'rows{self.lookback}': x[:, :, 0]}), tk

    both = pj.chain(Looking(1), Looking(3))
    assert both.lookback == 3
    x = jnp.arange(5.0)[None, :, None]  # three earlier rows and two of the sequence
    q, tok = jnp.zeros((1, 2, 1, 4)), pj.Tokens.of(length=2)
    feats = both.project(q, q, q, tok, tok, x)[3].feats
    assert feats['rows1'].tolist() == [[2, 3, 4]] and feats['rows3'].tolist() == [[0, 1, 2, 3, 4]]


def test_random_links_draw_apart_and_repeatably():
    both, tok = pj.chain(Shuffled(), pj.chain(Encoding(), Shuffled())), pj.Tokens.of(length=4)
    draw = lambda encoding, seed: np.asarray(
        encoding.place(tok, key=jax.random.key(seed)).feats['draw']
    )
    assert both.place(tok).feats == {}
    assert (draw(both, 0) == draw(both, 0)).all() and (draw(both, 0) != draw(both, 1)).any()
    assert (
        draw(both, 0) != draw(pj.chain(Shuffled(), Encoding()), 0)
    ).any()  # the second link has a draw of its own


@pytest.mark.full
def test_masks_are_combined_with_and():
    tok = pj.Tokens.of(segment=[[0, 0, 1, 1]])
    seen = pj.make('window(size=2) | causal() | document()').mask(tok, tok)[0, 0]
    assert seen.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert pj.make('nope() | full()').mask(tok, tok) is None


def test_default_masks():
    make = lambda spec, causal: kinds(pj.make(spec, causal=causal))
    assert make('nope()', None) == ['NoPE']
    assert make('nope()', True) == ['NoPE', 'Causal', 'Document']
    assert make('nope()', False) == ['NoPE', 'Full', 'Document']
    assert make('nope() | prefix(length=2)', True) == ['NoPE', 'Prefix', 'Document']
    assert make('full()', True) == ['Full', 'Document']
    assert make('document() | causal()', True) == ['Document', 'Causal']
    assert kinds(pj.make(pj.make('nope()'), causal=True)) == ['NoPE', 'Causal', 'Document']


def test_conflicts_are_looked_for_once(monkeypatch):
    checked = []
    monkeypatch.setattr(conflicts, 'check', checked.append)
    pj.make('rope() | alibi()', causal=True, heads=4, head_dim=8)
    assert [len(parts) for parts in checked] == [4]


def test_causal_only_encodings_refuse_the_encoder():
    import dataclasses

    class Backward(Encoding):
        card = dataclasses.replace(pj.make('nope()').card, key='backward', causal_only=True)

    assert kinds(pj.make(Backward(), causal=True))[0] == 'Backward'
    with pytest.raises(SpecError, match='backward is defined for causal attention only'):
        pj.make(pj.chain(Encoding(), Backward()), causal=False)


@pytest.mark.full
def test_the_evaluation_of_a_chain_is_that_of_its_links():
    tok = pj.Tokens.of(length=5)
    q = jax.random.normal(jax.random.key(0), (1, 5, 2, 4))
    one = pj.attend(pj.make('alibi() | causal() | window(size=3)', heads=2), q, q, q, tok, tok)
    other = pj.attend(
        pj.chain(pj.make('window(size=3)'), pj.make('causal()'), pj.make('alibi()', heads=2)),
        q,
        q,
        q,
        tok,
        tok,
    )
    np.testing.assert_allclose(one, other, atol=1e-6)
    assert isinstance(pj.make('alibi() | causal()', heads=2), ChainedEncoding)


def test_two_parts_that_write_one_feature():
    tok = pj.Tokens.of(length=2).with_feats(cope=jnp.zeros((1, 2, 1)))
    with pytest.raises(ValueError, match="the feature 'cope' exists already"):
        tok.with_feats(cope=jnp.ones((1, 2, 1)))


class TwoInputs(SeveralInputs):
    """Attention from x and from the row before it."""

    lookback = 1

    def qkv(self, x, linear, tok):
        return tuple(jnp.concatenate(a, 2) for a in zip(linear(x[:, 1:]), linear(x[:, :-1])))

    def merge(self, out):
        return out[:, :, : out.shape[2] // 2] - out[:, :, out.shape[2] // 2 :]


def test_branches_have_one_owner_and_read_its_rows():
    class Looking(Encoding):
        lookback = 3

    both = pj.chain(Looking(), TwoInputs(), Doubling('a', 1))
    x, tok = jnp.arange(5.0)[None, :, None], pj.Tokens.of(length=2)
    assert (
        both.opens('qkv')
        and both.opens('merge')
        and not pj.chain(Looking(), Doubling('a', 1)).opens('qkv')
    )
    linear = lambda x: (x[:, :, None],) * 3
    for a in both.qkv(x, linear, tok):
        assert a[0, :, :, 0].tolist() == [[3, 2], [4, 3]]
    assert both.merge(jnp.arange(4.0)[None, None, :, None]).ravel().tolist() == [-2, -2]
    shut = pj.chain(Looking(), Doubling('a', 1))
    assert capabilities.qkv(shut, x[:, shut.lookback :], x, linear, tok)[0].ravel().tolist() == [
        3,
        4,
    ]
    out = x[..., None]
    assert capabilities.merge(shut, out) is out
    with pytest.raises(
        SpecError, match="TwoInputs and TwoInputs both need the exclusive door 'qkv'"
    ):
        pj.chain(TwoInputs(), Doubling('a', 1), TwoInputs())


def test_branch_and_merge_are_opened_together():
    class NoMerge(Encoding):
        def qkv(self, x, linear, tok):
            return linear(x)

    class NoBranch(Encoding):
        def merge(self, out):
            return out

    with pytest.raises(
        SpecError, match="NoMerge opens the door 'qkv' and not 'merge': they are opened together"
    ):
        pj.make(NoMerge(), causal=True)
    with pytest.raises(SpecError, match="NoBranch opens the door 'merge' and not 'qkv'"):
        pj.chain(NoBranch())
    with pytest.raises(SpecError, match="NoMerge opens the door 'qkv'"):
        pj.chain(NoMerge(), NoBranch())


@pytest.mark.parametrize(
    'spec', ['alibi()', 'path(rank=2)', 'fire()', 'carope()', 't5_rpe()', 'ms_poe(encoding=rope())']
)
def test_what_knows_the_heads_of_the_model_has_no_place_beside_branches(spec):
    make = lambda spec: pj.make(spec, heads=4, kv_heads=2, head_dim=8, model_dim=32, train_len=16)
    part = make(spec)
    message = (
        f'TwoInputs gives every head several inputs of attention, and {spec.split("(")[0]} '
        'has parameters per head'
    )
    for pair in ((part, TwoInputs()), (TwoInputs(), part)):
        with pytest.raises(SpecError, match=message):
            pj.chain(*pair)
    for spec in ('rope()', 'window(size=3)', 'sinusoidal()', 'tapa()', 'cope(npos=4)'):
        pj.chain(TwoInputs(), make(spec))
