"""`choose` names what can be built, for all answers for which there is advice."""

import itertools
import re
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
            for name, choices in choosing.QUESTIONS.items():
                wanted = answers.get(name, [])
                assert set([wanted] if isinstance(wanted, str) else wanted) <= set(choices)
            assert (
                not answers.keys() - choosing.QUESTIONS.keys() - {'checkpoint', 'tuning', 'factor'}
            )
        for pick in need.picks:
            assert parse(choosing.example(pick.spec), KINDS)
            assert set(pick.loads) <= set(choosing.QUESTIONS['loads'])


def test_every_advice_with_a_pick_is_found_by_some_answers():
    found, words = set(), choosing.QUESTIONS
    free = itertools.product(
        words['data'], words['needs'], words['memory'], (False, True), (False, True), (1, 4, 16)
    )
    names = 'data', 'needs', 'memory', 'checkpoint', 'tuning', 'factor'
    for answers in free:
        own: dict[str, Any] = dict(zip(names, answers))
        try:
            found.add(pj.choose(**own).need.title)
        except SpecError as error:
            assert 'there is one with' in str(error)
    assert found == {need.title for need in choosing.all_needs() if need.picks}


@pytest.mark.parametrize(
    'answers, spec',
    [
        (dict(factor=8), 'bam()'),
        (dict(factor=8, loads='transformers'), 'alibi()'),
        (dict(factor=4, needs='far context', step=1.05), 'fox()'),
        (dict(factor=4, needs='far context', kernel=True), 'fope(train_len=512)'),
        (dict(checkpoint=True, tuning=False, factor=8), 'self_extend(group=16)'),
        (dict(checkpoint=True, tuning=False, factor=8, memory='constant'), 'lm_infinite()'),
        (dict(checkpoint=True, factor=2.5), 'yarn(factor=2.5)'),
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
    assert 'B5 holds (kerple): 0.0412 nats a byte (0.0346 to 0.0464 over 3 seeds; at least' in words
    assert 'B1 tolerated (alibi): 0.00354 nats a byte more (0.00314 to 0.00422 over 3' in words
    assert 'where 0.02 more is allowed. The same bytes of text in windows of 128 and' in words
    assert max(map(len, text.splitlines())) <= 100


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
