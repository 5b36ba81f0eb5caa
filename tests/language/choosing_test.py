"""`choose` names what can be built, for all answers for which there is advice."""

import itertools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

import posenc_jax as pj
from posenc_jax.language import choosing, measured
from posenc_jax.language.catalog import KINDS
from posenc_jax.language.spec import parse
from posenc_jax.protocol.errors import SpecError


def test_all_that_is_advised_can_be_written_and_all_answers_exist():
    for need in choosing.all_needs():
        for answers in (need.when, *(pick.when for pick in need.picks)):
            assert answers.get('memory', 'constant') == 'constant'
            for name, choices in choosing.QUESTIONS.items():
                wanted = answers.get(name, [])
                assert set([wanted] if isinstance(wanted, str) else wanted) <= set(choices)
            assert (
                not answers.keys() - choosing.QUESTIONS.keys() - {'checkpoint', 'tuning', 'factor'}
            )
        for pick in need.picks:
            assert parse(choosing.example(pick.spec), KINDS)
            assert set(pick.loads) <= set(choosing.QUESTIONS['loads'])


def asked(when: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """All answers that are meant, with the largest factor."""
    listed = lambda name, v: v[1:] if name == 'factor' else v if isinstance(v, list) else [v]
    own = {name: listed(name, wanted) for name, wanted in when.items()}
    return (dict(zip(own, answers)) for answers in itertools.product(*own.values()))


def test_every_pick_is_found_by_some_answers():
    for need in choosing.all_needs():
        for pick in need.picks:
            when = {'tuning': False, **need.when, **pick.when}
            found = [pj.choose(**answers) for answers in asked(when)]
            specs = [spec for one in found if one.need == need for spec in (one.spec, *one.others)]
            factor = when.get('factor', (0, 1))[1]
            twice = max(2, math.ceil(2 * factor))
            assert pick.spec.format(factor=f'{factor:g}', twice=twice) in specs, need.title


@pytest.mark.parametrize('one', choosing.all_unmeasured(), ids=lambda one: one.says[:40])
def test_every_reason_is_printed_for_answers_without_advice(one):
    for answers in asked(one.when):
        with pytest.raises(SpecError) as caught:
            pj.choose(**answers)
        assert f': {one.says}; there is one with ' in str(caught.value)


@pytest.mark.parametrize(
    'answers',
    [
        dict(data='images', checkpoint=True),
        dict(data='graph', needs='retrieval'),
        dict(data='globe', factor=16),
        dict(data='signal', factor=4),
        dict(data='pictures in text', checkpoint=True, tuning=False),
        dict(needs='retrieval', memory='constant'),
        dict(checkpoint=True, factor=64),
    ],
)
def test_no_answer_is_ignored(answers):
    with pytest.raises(SpecError, match='no advice for .*; there is one with [a-z]+='):
        pj.choose(**answers)


def test_the_answers_that_an_error_names_have_an_advice():
    with pytest.raises(SpecError, match='that of rope rises by 3.1 nats') as caught:
        pj.choose(kernel=True, factor=8)
    assert str(caught.value).endswith(
        "; there is one with needs='far context' or needs='streams' or checkpoint=True "
        'or factor=1 or kernel=False'
    )
    assert pj.choose(kernel=True, factor=8, needs='far context').spec == 'fope()'
    assert pj.choose(kernel=True, factor=8, checkpoint=True).spec == 'yarn(factor=8)'
    both: dict[str, Any] = dict(needs='far context', factor=64, checkpoint=True, loads='gguf')
    with pytest.raises(SpecError, match="there is one with needs='loss' and factor=16$"):
        pj.choose(**both)
    assert pj.choose(**{**both, 'needs': 'loss', 'factor': 16}).spec == 'yarn(factor=16)'


@pytest.mark.parametrize(
    'answers, spec',
    [
        (dict(factor=8), 'bam()'),
        (dict(factor=8, loads='transformers'), 'alibi()'),
        (dict(factor=4, needs='far context', step=1.05), 'fox()'),
        (dict(factor=4, needs='far context', kernel=True), 'fope()'),
        (dict(checkpoint=True, tuning=False, factor=8), 'self_extend(group=16)'),
        (dict(checkpoint=True, tuning=False, factor=8, memory='constant'), 'lm_infinite()'),
        (dict(checkpoint=True, factor=2.5), 'yarn(factor=2.5)'),
        (dict(checkpoint=True, factor=8, memory='constant'), 'lm_infinite()'),
        (dict(checkpoint=True, factor=8, needs='far context'), 'leaky_rerope()'),
        (dict(), 'kerple()'),
        (dict(kernel=True), 'rope()'),
        (dict(factor=16), 'cable()'),
        (dict(factor=64), 'cable()'),
        (dict(memory='constant'), 'cheems(dt=0.05)'),
        (dict(memory='constant', factor=16), 'lm_infinite()'),
        (dict(needs='speed'), 'lm_infinite()'),
        (dict(needs='hidden tokens'), 'tupe(reset=False)'),
        (dict(needs='streams', checkpoint=True, factor=16), 'streaming()'),
        (dict(data='images', needs='finer', factor=2), 'rope_mixed()'),
        (
            dict(data='images', needs='shifts'),
            'polyphase_anchor() | learned_grid(rows=4, columns=4)',
        ),
        (dict(data='pictures in text', checkpoint=True), 'mrope_interleaved()'),
    ],
)
def test_answers_leave_out_what_does_not_suit(answers, spec):
    assert pj.choose(**answers).spec == spec


def test_a_choice_prints_its_evidence_within_a_screen():
    text = str(pj.choose(factor=8))
    words = ' '.join(text.split())
    assert 'models 4 layers of width 96' in words and re.search(
        r'train step takes \d\.\d\dx', words
    )
    for claim in (measured.verdicts()[name] for name in ('B5', 'B30')):
        assert f'{claim.claim} {claim.verdict} ({claim.key}): {claim.effect}' in words
        assert claim.compared in words
    assert max(map(len, text.splitlines())) <= 100
    address = text.split()[-1]
    assert address == f'docs/choosing.md#{pj.choose(factor=8).need.anchor}'


def test_a_layer_that_is_no_encoding_prints_how_a_model_takes_it():
    text = ' '.join(str(pj.choose(needs='retrieval')).split())
    assert 'use A layer of a model in place of attention, which `pj.Attention` does not' in text
    assert text.count('in place of attention') == 1 and choosing.use('nope() | ssmax()') == ''
    assert choosing.use('yarn(factor=4)') == "Of a trained model: `model.extend('yarn(factor=4)')`."
    assert choosing.use('dca()') and not choosing.use('rope(freqs=hope_rope())')
    assert 'in place of attention' in str(pj.choose(needs='speed')).replace('\n' + ' ' * 16, ' ')


def test_an_answer_about_passkeys_has_the_figures_and_the_models_of_passkeys():
    text = ' '.join(str(pj.choose(checkpoint=True, factor=16, needs='retrieval')).split())
    assert '(.99 to 1.00 over three seeds)' in text and 'claims B22 open' in text
    assert 'models 2 layers of width 64, 1500 batches of 32 texts of 16 to 64 tokens' in text
    assert 'nats a byte' not in text


def test_interleaved_frequencies_have_the_cost_of_their_own_key():
    text = ' '.join(str(pj.choose(data='pictures in text')).split())
    assert 'cost A train step takes 0.95x of `rope()`' in text and 'decoding 1.04x' in text


def test_encodings_that_were_timed_together_have_their_own_cost():
    found = pj.choose(factor=1)
    assert 'rope() | alibi()' in found.others
    words = ' '.join(str(found).split())
    assert 'and that of rope by 1.6. A train step takes 1.02x of `rope()` and 119 MiB of' in words
    assert choosing.cost_cells('rope() | alibi()') == ('1.02x of `rope()`', '1.00x', '119')


def test_every_advice_names_its_models_and_its_measured_claims():
    for need in choosing.all_needs():
        assert bool(need.scale) >= bool(need.picks), need.title
        for claim, verdict in need.rests.items():
            assert measured.verdicts()[claim].verdict == verdict, claim


@pytest.mark.parametrize(
    'answers, message',
    [
        (dict(data='txt'), "data is 'txt'; did you mean 'text'"),
        (dict(needs='losses'), "needs is 'losses'; did you mean 'loss'"),
        (dict(factor=0), 'factor must be positive, got 0'),
        (dict(factor='8'), "factor must be a number, got '8'"),
        (dict(step='1.1'), "step must be a number, got '1.1'"),
        (dict(checkpoint='yes'), "checkpoint must be True or False, got 'yes'"),
        (dict(factor=100), 'factor must be at most 64'),
        (dict(data='images', factor=4), "there is one with needs='finer'"),
        (dict(needs='arithmetic'), "no advice for data='text', needs='arithmetic'"),
        (dict(factor=8, loads='gguf'), "with loads='' or loads='transformers' or checkpoint=True"),
    ],
)
def test_answers_without_advice_say_which_have_one(answers, message):
    with pytest.raises(ValueError) as caught:
        pj.choose(**answers)
    assert message in str(caught.value)


def test_an_unknown_question_is_an_error_with_the_nearest_one():
    with pytest.raises(TypeError, match=r"choose\(\) has no .* 'tunning'; did you mean 'tuning"):
        pj.choose(tunning=True)  # pyright: ignore[reportCallIssue]


def test_the_questions_are_those_of_the_docstring():
    text = ' '.join((pj.choose.__doc__ or '').split())
    for answers in choosing.QUESTIONS.values():
        assert not [answer for answer in answers if f"'{answer}'" not in text]


def test_links_of_the_page_are_printed_with_their_file():
    text = ' '.join(str(pj.choose(factor=8)).split())
    assert 'The table (docs/results/relative_bias.md#language) has all lengths' in text
    assert 'below (docs/choosing.md#a-new-model' in text and 'in the repository: docs/' in text
