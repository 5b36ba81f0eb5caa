"""Methods of the laboratory that are no encodings stand in the catalogue and can be cited."""

import pytest

import posenc_jax as pj

CARDS = [card for kind in ('analysis', 'cache', 'conversion') for card in pj.catalog(kind)]


@pytest.mark.parametrize('card', CARDS, ids=lambda card: card.key)
def test_it_can_be_cited(card):
    assert f'eprint = {{{card.arxiv}}}' in pj.cite(f'{card.key}()')


def test_methods_of_each_kind_are_found():
    assert {'attention_entropy', 'graph_kv', 'tulip'} <= {card.key for card in CARDS}
