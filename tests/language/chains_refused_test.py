"""What `make` and `chain` refuse, and what the message says."""

import pytest

import posenc_jax as pj
from posenc_jax.protocol.errors import SpecError

SIZES = dict(heads=4, head_dim=8, model_dim=32, train_len=16)
TWICE = 'both rotate queries and keys'
REFUSED = {  # chain -> what the message says
    # a part would not notice what another one does
    'kernelized_rpe() | rope()': 'kernelized_rpe does not read what rope makes of queries and '
    'keys: write rope before it',
    'nope_temperature(3.0) | positional_attention(max_len=8)': 'what nope_temperature makes of '
    'queries .* leave',
    'rope() | shaw()': 'write shaw before rope',
    'rope() | rcmha(max_len=8)': 'write rcmha before rope',
    'rope() | alibi() | psc()': 'write psc before rope',
    'per_head(first=kernelized_rpe(), second=alibi(), heads_of_first=2) | rope()': 'per_head does '
    'not read what rope makes of queries and keys: write rope before it',
    'cable() | lm_infinite(encoding=alibi(), n_global=2, n_local=4)': 'cable sums over all keys .* '
    'lm_infinite hides some',
    'gpe(k=2, source=8) | path()': 'path sums over all keys up to the query, gpe hides some',
    'per_head(first=cable(), second=alibi(), heads_of_first=2) | gpe(k=2, source=8)': 'per_head '
    'sums .* gpe hides',
    'rcmha(max_len=8) | rope(freqs=dynamic_ntk())': 'rope projects all cached keys again .* rcmha '
    'reads the layer input of tokens',
    # queries and keys are rotated once
    'rope() | rope(base=500.0)': f'rope and rope {TWICE}',
    'rope(partial=0.5) | alibi() | ms_poe(encoding=rope())': f'rope and ms_poe {TWICE}',
    'xpos() | rope()': f'xpos and rope {TWICE}',
    'carope() | rope()': f'carope and rope {TWICE}',
    'rope() | dca(encoding=rope())': f'rope and dca {TWICE}',
    'hirope(encoding=rope()) | rope()': f'hirope and rope {TWICE}',
    'lm_infinite(encoding=rope()) | rope()': f'lm_infinite and rope {TWICE}',
    'conflator() | rope(freqs=dynamic_ntk(factor=2.0))': f'conflator and rope {TWICE}',
    # masks that contradict each other
    **{
        chained: f'causal hides later keys and {shown} shows them: leave one out'
        for shown, spec in (('full', 'full()'), ('prefix', 'prefix(length=2)'))
        for chained in (f'causal() | {spec}', f'{spec} | causal()')
    },
    # tables that are shorter than the positions which are drawn
    'randomized_pe(max_len=64) | learned_absolute(max_len=16)': 'draws positions 0 .. 63, '
    'learned_absolute has 16',
    'learned_absolute(max_len=16) | randomized_pe(max_len=64)': 'draws positions 0 .. 63, '
    'learned_absolute has 16',
    'position_coupling(max_position=20) | randomized_pe(max_len=64)': '0 .. 63, position_coupling '
    'has 21',
}
LATER = (  # these are for causal attention only, and a mask lets queries see later keys
    'cope() | full()',
    'path(forget=True) | prefix(length=6)',
    'fire() | full()',
    'full() | dca(encoding=rope())',
)
CALLS = {  # what the message says -> the call
    'spec string .* or an encoding, got int': lambda: pj.make(42),
    'got list': lambda: pj.make(['rope()']),
    "chain.. joins encodings, got 'rope": lambda: pj.chain('rope()', 'alibi()'),
    'chain.. needs at least one': lambda: pj.chain(),
    "heads as a positive integer, got '8'": lambda: pj.make('alibi()', heads='8'),
    'heads as a positive integer, got 8.0': lambda: pj.make('alibi()', heads=8.0),
    '4 heads are not a multiple of 3 kv_heads': lambda: pj.make('alibi()', heads=4, kv_heads=3),
    'alibi: heads=2, but the model has heads=4': lambda: pj.make('alibi(heads=2)', heads=4),
    "alibi needs 'heads'": lambda: pj.make('alibi()'),
    r'rngs as nnx.Rngs, e.g. nnx.Rngs\(0\), got 0': lambda: pj.make('nope()', rngs=0),
    r"make\(\) has no argument 'head'; did you mean 'heads'": lambda: pj.make('nope()', head=4),
}


@pytest.mark.parametrize('chained', REFUSED)
def test_wrong_chains_are_refused(chained):
    with pytest.raises(SpecError, match=REFUSED[chained]):
        pj.make(chained, **SIZES)


@pytest.mark.parametrize('chained', LATER)
def test_what_is_causal_refuses_masks_that_show_later_keys(chained):
    said = 'is defined for causal attention only, (full|prefix) lets queries see later keys'
    with pytest.raises(SpecError, match=said):
        pj.make(chained, causal=True, kv_heads=2, **SIZES)


@pytest.mark.parametrize('message', CALLS)
def test_wrong_calls_are_refused(message):
    with pytest.raises(SpecError, match=message):
        CALLS[message]()


@pytest.mark.parametrize(
    'chained',
    [
        'rope() | alibi()',
        'lm_infinite(encoding=alibi()) | rope()',
        'psc() | xpos()',
        'rope() | kerple()',
        'alibi() | psc() | rope()',
    ],
)
def test_what_rotates_may_stand_beside_what_does_not(chained):
    assert pj.make(chained, **SIZES).traits >= {'rotates'}


def test_a_table_that_begins_again_takes_any_position():
    pj.make('randomized_pe(max_len=64) | learned_absolute(max_len=16, overflow="mod")', model_dim=8)
