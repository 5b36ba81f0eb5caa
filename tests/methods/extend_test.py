"""`extend`: which part it takes over, what it keeps, what it refuses."""

import pytest

import posenc_jax as pj
from posenc_jax.methods.extend import extend
from posenc_jax.protocol.composite import name_of, parts_of
from posenc_jax.protocol.errors import SpecError

CONTEXT = dict(head_dim=8, heads=2, train_len=64)


def names(encoding):
    return [name_of(part) for part in parts_of(encoding)]


@pytest.mark.parametrize(
    'rule', ['pi(factor=4.0)', 'ntk_aware(factor=4.0)', 'yarn(factor=4.0)', 'dynamic_ntk()']
)
def test_frequency_rules_replace_the_rule_of_the_rotary_part(rule):
    trained = pj.make(
        'rope(base=500.0, layout="interleaved", partial=0.5) | alibi()', causal=True, **CONTEXT
    )
    longer = extend(trained, rule, train_len=64)
    assert names(longer) == names(trained) == ['rope', 'alibi', 'causal', 'document']
    part = longer.parts[0]
    assert (part.base, part.layout, part.partial, part.head_dim) == (500.0, 'interleaved', 0.5, 8)
    assert part.freqs == pj.make(f'rope(freqs={rule})', **CONTEXT).freqs
    assert trained.parts[0].freqs is None
    assert longer.cached == ('raw' if rule == 'dynamic_ntk()' else 'encoded')
    assert longer.parts[1] is trained.parts[1]


def test_extensions_wrap_the_part_they_are_given():
    rotary, linear = pj.make('rope() | causal()', **CONTEXT), pj.make('alibi()', **CONTEXT)
    longer = extend(rotary, 'dca(chunk=8, local=4)', train_len=64)
    assert names(longer) == ['dca', 'causal'] and longer.parts[0].encoding is rotary.parts[0]
    assert names(
        extend(pj.make('rope() | alibi()', **CONTEXT), 'dca(chunk=8, local=4)', train_len=64)
    ) == ['dca', 'alibi']
    clipped = extend(linear, 'lm_infinite(n_global=4)', train_len=64)
    assert clipped.encoding is linear and clipped.n_local == 64


def test_several_are_applied_from_left_to_right():
    longer = extend(pj.make('rope()', **CONTEXT), 'pi(factor=2.0) | lm_infinite()', train_len=64)
    assert longer.card.key == 'lm_infinite' and longer.encoding.freqs.factor == 2.0


@pytest.mark.parametrize(
    'encoding, spec, message',
    [
        ('alibi()', 'yarn(factor=4.0)', 'yarn extends one rotary encoding; found 0 in alibi'),
        ('nope() | causal()', 'dca()', 'dca extends one rotary encoding; found 0 in nope | causal'),
        ('rope() | alibi()', 'lm_infinite()', 'found 2 in rope | alibi'),
        ('alibi()', 'dca()', 'dca extends one rotary encoding; found 0 in alibi'),
        ('rope()', 'dca() | yarn(factor=2.0)', 'found 0 in dca'),
        ('rope()', 'yran(factor=2.0)', "did you mean 'yarn'"),
        ('rope()', 'rope()', 'registered as encoding'),
        (
            'rope()',
            'yarn(factor=2.0) | dca() | ntk_aware(factor=2.0)',
            'ntk_aware would replace yarn',
        ),
        (
            'rope()',
            'dca(encoding=rope(base=7.0))',
            'leave out encoding=rope(base=7.0)'.replace('(', r'\(').replace(')', r'\)'),
        ),
        ('rope(freqs=dynamic_ntk())', 'lm_infinite()', 'do not depend on the current length'),
    ],
)
def test_errors(encoding, spec, message):
    with pytest.raises(SpecError, match=message.replace('|', r'\|')):
        extend(pj.make(encoding, **CONTEXT), spec, train_len=64)


def test_what_the_context_lacks_is_an_error():
    with pytest.raises(SpecError, match="yarn needs 'train_len'"):
        extend(pj.make('rope()', **CONTEXT), 'yarn(factor=4.0)')


def test_a_spec_string_is_an_encoding_too():
    longer = pj.extend('rope(base=500.0)', 'yarn(factor=4.0)', head_dim=8, train_len=64)
    assert repr(longer) == 'rope(base=500.0, freqs=yarn(factor=4.0))'
    assert longer.freqs == pj.make('rope(freqs=yarn(4))', head_dim=8, train_len=64).freqs


@pytest.mark.parametrize(
    'arguments, context, message',
    [
        ((3, 'yarn(factor=4.0)'), {}, 'the encoding is 3'),
        (('rope()', 4.0), CONTEXT, 'an extension as a spec string like .*, got 4.0$'),
        (('rope()', 'yarn(factor=4.0)'), dict(train_len=64), "rope needs 'head_dim'"),
        (('yarn(factor=4.0)', 'rope()'), CONTEXT, "'yarn' is registered as frequencies"),
        (('roep()', 'yarn(factor=4.0)'), CONTEXT, "did you mean 'rope'"),
        (('rope()', 'YaRN(factor=4.0)'), CONTEXT, "did you mean 'yarn'[?]$"),
        (
            ('rope()', 'yarn(factor=4.0)'),
            dict(trainlen=64),
            "no argument 'trainlen'; .*'train_len'",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(arguments, context, message):
    with pytest.raises(SpecError, match=message) as error:
        pj.extend(*arguments, **context)
    assert len(str(error.value).splitlines()) == 1
