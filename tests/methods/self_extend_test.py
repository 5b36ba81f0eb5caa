"""Self-Extend, ReRoPE, leaky ReRoPE: the distances of the sheet, tables against tiles, decoding,
limits, errors.
"""

import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax as pj
from posenc_jax.methods.self_extend import self_extend_capacity, self_extend_distance
from posenc_jax.protocol.errors import SpecError
from tests.golden_files import golden
from tests.methods.by_distance import WIDTH, check_decoding, check_tiles, defined, qkv, run

GOLDEN = golden('self_extend')['values']
FORMS = {
    'grouped': dict(group=2, local=4),
    'not dividing': dict(group=3, local=4),
    'rerope': dict(group=None, local=4),
    'leaky': dict(group=1.5, local=4, floor=False),
}


def encoding(group=GOLDEN['group'], local=GOLDEN['local'], floor=True, part='rope()'):
    spec = f'self_extend(encoding={part}, group={group}, local={local}, floor={floor})'
    return pj.make(spec, head_dim=WIDTH, train_len=64, causal=True)


def distances(length, **form):
    pos = jnp.arange(length)[None]
    return np.asarray(self_extend_distance(pos, pos, **form))[0]


def test_golden_last_row_and_capacity():
    group, local, train_len = GOLDEN['group'], GOLDEN['local'], GOLDEN['train_len']
    assert distances(12, group=group, local=local)[-1].tolist() == GOLDEN['last_row']
    capacity = self_extend_capacity(train_len, group, local)
    assert capacity == GOLDEN['capacity']
    assert distances(capacity, group=group, local=local).max() == train_len - 1
    assert distances(capacity + 1, group=group, local=local).max() == train_len


@pytest.mark.parametrize('form', FORMS.values(), ids=FORMS)
@pytest.mark.full
def test_tiles_equal_the_table_of_distances(form):
    check_tiles(encoding(**form), distances(19, **form), None, (5, 3))


def test_the_three_forms_of_one_formula():
    """Leaky distances are w + (i - j - w) / k beyond w; as k grows they and the grouped ones become
    min(i - j, w).
    """
    gap = np.subtract.outer(np.arange(19), np.arange(19))
    leaky = distances(19, group=3.0, local=5, floor=False)
    np.testing.assert_allclose(leaky, np.where(gap < 5, gap, 5 + (gap - 5) / 3), rtol=1e-6)
    endless = distances(19, group=None, local=5)
    np.testing.assert_array_equal(endless, np.minimum(gap, 5))
    np.testing.assert_allclose(distances(19, group=1e6, local=5, floor=False), endless, atol=1e-4)
    np.testing.assert_allclose(distances(19, group=10**6, local=5), endless, atol=1e-4)


@pytest.mark.parametrize(
    'options',
    [dict(group=1), dict(group=1.0, floor=False), dict(local=12), dict(group=None, local=12)],
    ids=str,
)
def test_groups_of_one_and_a_wide_window_are_rope(options):
    arrays, tok = qkv(12), pj.Tokens.of(length=12)
    plain = pj.make('rope()', head_dim=WIDTH, causal=True)
    np.testing.assert_allclose(
        run(encoding(**options), tok, *arrays), run(plain, tok, *arrays), atol=1e-6
    )


def test_rerope_is_lm_infinite_that_hides_nothing():
    arrays, tok = qkv(17), pj.Tokens.of(length=17)
    ceiling = pj.make(
        'lm_infinite(encoding=rope(), n_global=17, n_local=4)', head_dim=WIDTH, train_len=64
    )
    np.testing.assert_allclose(
        run(encoding(group=None), tok, *arrays), run(ceiling, tok, *arrays), atol=2e-6
    )


@pytest.mark.parametrize('form', ['not dividing', 'leaky'])
@pytest.mark.full
def test_decoding_over_keys_cached_once(form):
    check_decoding(encoding(**FORMS[form]), 14, (0, 3, 4, 5, 13))


@pytest.mark.parametrize(
    'form', [dict(group=3, local=4), dict(group=3.0, local=4, floor=False)], ids=str
)
def test_far_out_it_is_as_exact_as_at_the_beginning(form):
    """Angles, not fractional positions, which float32 would round: 3e6 / 3 + 4 - 4/3 has two binary
    digits behind the point.
    """
    arrays, start = qkv(12), 3 * 2**20
    far = pj.Tokens.of(positions=start + np.arange(12)[None])
    tok = pj.Tokens.of(length=12)
    np.testing.assert_allclose(
        run(encoding(**form), far, *arrays), run(encoding(**form), tok, *arrays), atol=1e-5
    )


def test_other_layouts_widths_and_frequencies():
    part = 'rope(layout="interleaved", freqs=yarn(factor=4.0))'
    q, k, v = qkv(12)
    stretched = pj.make(
        'rope(layout="interleaved", freqs=yarn(factor=4.0))',
        head_dim=WIDTH,
        train_len=64,
        causal=True,
    )
    far = run(encoding(group=3, part=part, local=1), pj.Tokens.of(length=12), q, k, v)[:, -1]
    own = lambda tok: stretched.parts[0].project(q, k, v, tok, tok)
    positions = -distances(12, group=3, local=1)[-1]
    alone = pj.Tokens.of(positions=np.concatenate([positions[:-1], [0]])[None].astype(np.float32))
    q_at, k_at, v_at, tq, tk = own(alone)
    np.testing.assert_allclose(
        far,
        pj.attend(stretched, q_at, k_at, v_at, tq, tk, applied=pj.TOKEN_STAGE)[:, -1],
        atol=2e-6,
    )


@pytest.mark.full
def test_bfloat16():
    arrays, tok = [a.astype(jnp.bfloat16) for a in qkv(12)], pj.Tokens.of(length=12)
    out = run(encoding(), tok, *arrays)
    assert out.dtype == jnp.bfloat16
    exact = defined(*(a.astype(jnp.float32) for a in arrays), distances(12, group=2, local=4))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, atol=0.04)


@pytest.mark.parametrize(
    'spec, message',
    [
        ('self_extend(encoding=alibi())', 'rotary encoding, got alibi'),
        ('self_extend(encoding=rope(freqs=dynamic_ntk()))', 'do not depend on the current length'),
        (
            'self_extend(encoding=rope(freqs=longrope(long=(1.0, 2.0, 3.0, 4.0), start=2, '
            'factor=4.0)))',
            'use start=0',
        ),
        ('self_extend(encoding=rope(), group=0)', 'group=0'),
        ('self_extend(encoding=rope(), group=1e38)', 'below 2.*31 with floor=True, got group=1e'),
        ('self_extend(encoding=rope(), group=2.6)', 'group=2.6; the nearest is 3'),
        ('self_extend(encoding=rope(), group=None, floor=False)', 'finite group, got group=None'),
        ('self_extend(encoding=rope(), local=0)', 'local=0'),
        ('self_extend(encoding=rope(), local=65)', 'trained length of 64, got local=65'),
        ('self_extend(encoding=rope(), train_len=3)', r'at least 1, got 0 \(train_len=3\)'),
        ('self_extend()', 'extends another encoding'),
    ],
)
def test_errors(spec, message):
    with pytest.raises(SpecError, match=message):
        pj.make(spec, head_dim=8, heads=2, train_len=64)
