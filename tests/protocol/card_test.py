"""Tests of the bibliography: an entry for each method, and none without one."""

import re

import pytest

from posenc_jax.language.catalog import bibtex
from posenc_jax.protocol import card
from posenc_jax.protocol.card import Card, equation_of
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import entries, register


def test_every_entry_is_of_a_method_and_is_named_as_it_is_cited():
    cards = {entry.key: entry.card for entry in entries() if entry.card is not None}
    assert card.papers().keys() <= cards.keys()
    labels = re.findall(r'^@misc\{(\w+),', card._FILE.read_text(encoding='utf-8'), re.MULTILINE)
    assert len(labels) == len(card.papers())
    for label in labels:
        (key,) = [k for k in card.papers() if re.fullmatch(rf'[a-z]+\d{{4}}{k}', label)]
        assert bibtex(cards[key]).startswith(f'@misc{{{label},')


def test_one_paper_of_several_methods_stands_once():
    first, second = card.of_paper('randomized_pe'), card.of_paper('randomized_alibi')
    assert first['title'] == second['title'] and first['arxiv'] == '2305.16843'
    assert card._FILE.read_text(encoding='utf-8').count(str(first['title'])) == 1


def test_a_card_states_what_no_other_source_has():
    def add(**fields):
        register('no_such_paper', kind='analysis', card=Card(name='N', example='n()', **fields))(
            lambda: None
        )

    with pytest.raises(SpecError, match="'no_such_paper' needs title, source, authors, year of"):
        add()
    with pytest.raises(SpecError, match='needs authors of its paper'):
        add(title='T', source='S', year=2020)


def test_the_equation_is_the_first_code_that_begins_a_paragraph():
    class Both:
        """Adds `a` to b.

        It is linear.

        `c = a + b`, `a =
        2`, both of them, with `d`.
        """

    assert equation_of(Both) == 'c = a + b, a = 2'
    assert equation_of(lambda: None) == ''
