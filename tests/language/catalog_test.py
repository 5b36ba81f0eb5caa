"""Tests of the catalogue and the citations, which are made from the Cards of the methods."""

import functools
import re
from pathlib import Path

import pytest

import posenc_jax as pj
from posenc_jax.lab.catalogue import __main__ as commands
from posenc_jax.lab.catalogue import columns
from posenc_jax.lab.catalogue.__main__ import main
from posenc_jax.lab.catalogue.tasks import TASK_COLUMNS, tasks_markdown
from posenc_jax.language import measured
from posenc_jax.language.catalog import (
    COLUMNS,
    KINDS,
    bibtex,
    catalog,
    catalog_markdown,
    cite,
    promise_text,
    reference_text,
)
from posenc_jax.language.measured import verdicts
from posenc_jax.protocol.encoding import CAPABILITIES, DOORS
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import Card, entries, lookup

ROOT = Path(__file__).parents[2]


card = functools.partial(
    Card, 'A', 'a()', door='none', equation='x', title='T', source='a/b', authors='A, B', year=2026
)


def test_every_registered_method_has_a_row():
    rows = catalog()
    for kind in KINDS:
        for entry in entries(kind):
            assert entry.card is not None, f'{kind} {entry.key} has no Card'
            assert entry.card in rows and entry.card.key == entry.key
    assert len(rows) == sum(len(catalog(kind)) for kind in KINDS)


def test_the_whole_catalogue_fits_a_screen():
    text = repr(catalog())
    assert max(map(len, text.splitlines())) <= 100 and len(text.splitlines()) <= 60
    words = set(text.split())
    for kind in KINDS:
        assert {entry.key for entry in entries(kind)} <= words and repr(kind) in text, kind
    assert "catalog('rope') shows one entry" in text


@pytest.mark.parametrize('kind', KINDS)
def test_a_kind_has_a_line_for_each_method(kind):
    heading, header, *rows, more = str(catalog(kind)).splitlines()
    assert heading.endswith(f'({len(rows)})') and 'shows one entry' in more
    assert header.split() == ['key', 'doors', 'reference', 'title']
    assert [row.split()[0] for row in rows] == [card.key for card in catalog(kind)]
    assert max(map(len, [heading, *rows])) <= 100


def test_a_key_shows_the_whole_entry():
    text = repr(catalog('rope'))
    assert text.splitlines()[0] == 'rope: RoPE (encoding)'
    words = ' '.join(repr(catalog('kerple')).split())
    assert 'cost A train step takes' in words
    assert f'measured B5 {verdicts()["B5"].verdict}, ' in words
    for line in (
        'what            Rotates queries and keys by angles',
        "in a spec       rope(base=10000.0, layout='half', partial=1.0, freqs=None)",
        'from the model  head_dim',
        'example         rope()',
        'promises        relative,',
        'arXiv:2104.09864',
        'more            help(posenc_jax.methods.rope.Rotary)',
    ):
        assert line in text, line
    assert 'per_head(first, second, heads_of_first)' in str(catalog('per_head'))
    assert 'in Python       posenc_jax.lab.decoding.pie.edit' in str(catalog('pie'))
    both = str(catalog('alibi_pi'))
    assert '(encoding)' in both and '(extension)' in both


def test_every_entry_fits_the_width():
    for card in catalog():
        assert max(map(len, str(catalog(card.key)).splitlines())) <= 100, card.key


def test_it_is_a_table_in_a_notebook():
    table = catalog('extension')._repr_html_()
    assert table.count('<tr>') == len(catalog('extension')) + 1
    assert table.count('<td') == len(COLUMNS) * len(catalog('extension'))
    assert '<a href="https://arxiv.org/abs/2402.17463">' in table
    assert catalog()._repr_html_().count('<table>') == len(KINDS)
    assert '&lt;' in catalog()._repr_html_() and '<pre>rope: RoPE' in catalog('rope')._repr_html_()


@pytest.mark.parametrize(
    'what, near',
    [
        ('ropee', "did you mean 'rope'"),
        ('RoPE', "did you mean 'rope'?"),
        ('encodings', "did you mean 'encoding'"),
        ('task', "no kind and no method is 'task'"),
        (3, 'is 3; valid: '),
    ],
)
def test_unknown_names_are_refused(what, near):
    with pytest.raises(SpecError) as error:
        catalog(what)
    assert near in str(error.value) and '\n' not in str(error.value)


def test_rows_follow_the_pipeline():
    doors = [card.door for card in catalog('encoding')]
    assert doors.index('logits') < doors.index('mask') < doors.index('none')


def test_cards_name_doors_that_exist():
    known = {*DOORS, *CAPABILITIES, 'mlp', 'none', 'cache', 'analysis'}
    for card in catalog():
        assert set(card.door.split(', ')) <= known, f'{card.key}: {card.door}'


def test_markdown_has_as_many_cells_in_every_row():
    for line in catalog_markdown('encoding').splitlines():
        assert len(re.findall(r'(?<!\\)\|', line)) == len(COLUMNS) + 1, line
    assert catalog_markdown('encoding', columns=('key', 'name')).splitlines()[0] == '| key | name |'
    pictured = catalog_markdown('extension', columns=('key', 'name'), pictures='there').splitlines()
    assert pictured[
        0
    ] == '| key | picture | name |' and '| ![dca](there/extension_dca.png) |' in '\n'.join(
        pictured[2:]
    )
    assert 'picture' not in catalog_markdown('analysis', pictures='there')
    with pytest.raises(SpecError, match='colour'):
        catalog_markdown(columns=('colour',))


def test_every_task_has_a_row():
    header, rule, *rows = tasks_markdown().splitlines()[2:]
    assert header == f'| {" | ".join(TASK_COLUMNS)} |' and rule.count('---') == len(TASK_COLUMNS)
    cells = [re.split(r' (?<!\\)\| ', row.strip('| ')) for row in rows]
    assert [row[0] for row in cells] == [f'`{entry.key}`' for entry in entries('task')]
    for row in rows:
        assert len(re.findall(r'(?<!\\)\|', row)) == len(TASK_COLUMNS) + 1, row
    found = {row[0]: row[1:] for row in cells}
    assert found['`flip_flop`'][0].startswith('`w 1 i 0') and '`ignore=0.8`' in found['`flip_flop`']
    assert 'abs/2305.19466' in found['`impact_pe`'][2] and '`name`' in found['`impact_pe`'][1]
    assert all(row[1] for row in cells)


@pytest.mark.parametrize(
    'key, family',
    [
        ('alibi', 'Biases of logits by positions'),
        ('rope', 'Rotations of queries and keys'),
        ('mrope', 'Rotations of queries and keys'),
        ('cable', 'Logits of content and positions'),
        ('sinusoidal', 'Vectors added to tokens'),
        ('learned_absolute', 'Vectors added to tokens'),
        ('gpe', 'Positions of tokens'),
        ('ssmax', 'Scales, caps and sums of weights'),
        ('lm_infinite', 'Extensions to longer texts'),
        ('causal', 'Masks'),
        ('nope', 'Without positions'),
    ],
)
def test_an_encoding_is_of_the_family_of_what_it_does(key, family):
    assert columns.family(lookup(key, ('encoding',))) == family


def test_encodings_are_sorted_by_family_and_no_other_kind_has_one():
    text = catalog_markdown(columns=('key',), more=columns.MORE, order=columns.by_family)
    tables = [part.splitlines() for part in text.split('\n\n') if part.startswith('| key |')]
    first, *others = tables
    assert first[0] == '| key | family | cost | measured | use when |'
    families = [line.split(' | ')[1] for line in first[2:]]
    assert set(families) <= set(columns.FAMILIES)
    assert [*dict.fromkeys(families)] == sorted(set(families), key=columns.FAMILIES.index)
    assert {name for table in others for name in table[0].split(' | ') if 'family' in name} == set()
    assert '| key | measured | use when |' in [table[0] for table in others]


def test_a_method_leads_to_the_rows_of_its_measured_claims():
    cell = columns.measured(lookup('kerple', ('encoding',)))
    found = dict(part.split(': ', 1) for part in cell.split('; '))
    for claim in (claim for claim in verdicts().values() if claim.key == 'kerple'):
        assert f'[{claim.claim}](claims.md#{claim.claim})' in found[claim.verdict].split(', ')
    assert columns.measured(lookup('causal', ('encoding',))) == ''
    page = (ROOT / 'docs' / 'claims.md').read_text(encoding='utf-8')
    keys = {entry.key for entry in entries()}
    for claim in verdicts().values():
        assert page.count(f'| <a id="{claim.claim}"></a>{claim.claim} | `{claim.key}` |') == 1
        assert claim.key in keys


def test_every_row_says_when_to_use_the_method():
    for kind in KINDS:
        for entry in entries(kind):
            said = columns.use_when(entry)
            assert said, (
                f'{kind} {entry.key}: neither choosing.toml nor its Card says when to use it'
            )
            own = entry.card.use_when
            assert not own or re.fullmatch(r'[A-Z][^\n]*[^.]\.', own) and len(own) < 180, own
            assert own in ('', said), f'{kind} {entry.key}: a need names it, so its Card need not'


def test_a_method_whose_claims_are_all_contrary_says_so():
    for entry in (entry for kind in KINDS for entry in entries(kind)):
        found = {claim.verdict for claim in measured.claims_of(entry.key)}
        if found and found <= {'contrary', 'partly contrary'} and entry.card.use_when:
            assert 'contrary' in entry.card.use_when, f'{entry.kind} {entry.key}'


def test_methods_that_were_timed_together_have_a_row_of_their_own(monkeypatch):
    row = lambda keys, step, decode='': dict(keys=keys, step=step, decode=decode)
    timed = [row('a', '1.10'), row('b', '1.40'), row('a b', '1.20'), row('b', '1.30', '1.05')]
    monkeypatch.setattr(measured, 'costs', lambda: timed)
    assert measured.cost(['a', 'b'])['step'] == '1.20' and measured.cost(['b'])['decode'] == '1.05'
    assert measured.cost(['b', 'a'])['step'] == '1.30'
    assert measured.cost(['a', 'c']) == {} and measured.cost([]) == {}


def test_generated_files_are_up_to_date(capsys):
    assert main(['--check']) == 0, capsys.readouterr().out


def test_writing_and_checking(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(commands, 'draw', lambda entry, path: path.write_bytes(entry.kind.encode()))
    page = tmp_path / 'docs' / 'catalog.md'
    page.parent.mkdir()
    page.write_text('stale rows\n')
    assert main(['--check'], tmp_path) == 1
    assert '-stale rows' in capsys.readouterr().out and page.read_text() == 'stale rows\n'
    assert not (tmp_path / 'docs' / 'catalog').exists()
    assert main([], tmp_path) == 0
    assert main(['--check'], tmp_path) == 0
    picture = tmp_path / 'docs' / 'catalog' / 'extension_dca.png'
    assert picture.read_bytes() == b'extension'
    picture.unlink()
    assert (
        main(['--check'], tmp_path) == 1
        and 'extension_dca.png is missing' in capsys.readouterr().out
    )
    assert main([], tmp_path) == 0 and picture.exists()
    text = page.read_text()
    assert 'stale rows' not in text and '`alibi`' in text
    for promise in {name for card in catalog() for name in promise_text(card).split(', ') if name}:
        assert f'| {promise} |' in text, f'{promise} is not explained'


def test_citations_are_collected_from_the_whole_string_once():
    text = cite('alibi() | causal() | full() | alibi()')
    assert text.count('@misc') == 2
    assert 'eprint = {2108.12409}' in text and 'eprint = {1706.03762}' in text
    assert 'author = {Press, Ofir and Smith, Noah A. and Lewis, Mike}' in text
    with pytest.raises(SpecError, match='did you mean'):
        cite('alibbi()')


def test_bibtex():
    entry = bibtex(card(title='50% of A & B_c', authors='Gülçehre, Ç. and X, Y', key='a'))
    assert entry.startswith('@misc{gulcehre2026a,') and entry.endswith('\n}')
    assert (
        r'title = {{50\% of A \& B\_c}}' in entry
        and 'howpublished = {a/b}' in entry
        and 'eprint' not in entry
    )
    assert (
        reference_text(card()) == 'a/b (2026)'
        and reference_text(card(arxiv='1234.5')) == 'arXiv:1234.5 (2026)'
    )


@pytest.mark.parametrize(
    'entry', [entry for kind in KINDS for entry in entries(kind)], ids=lambda e: f'{e.kind}-{e.key}'
)
def test_every_card_can_be_cited(entry):
    text = bibtex(entry.card)
    assert text.count('{') == text.count('}') and f'year = {{{entry.card.year}}}' in text
    assert re.match(r'@misc\{[a-z]+\d{4}' + entry.key, text)


def test_a_nested_rule_is_cited_with_its_encoding():
    keys = {entry.key for entry in entries('frequencies')}
    if 'yarn' not in keys:
        pytest.skip('no frequency rules are registered')
    text = cite('rope(freqs=yarn(factor=4)) | alibi()')
    assert [
        re.search(r'[a-z_]+$', line).group() for line in re.findall(r'@misc\{(\w+),', text)
    ] == ['rope', 'yarn', 'alibi']
    assert 'yarn' in pj.cite('yarn(factor=4)')
