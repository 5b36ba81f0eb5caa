"""Files, tables and pictures of an evaluation."""

import csv
import dataclasses
import io
import json
import math
import os
import pathlib
import re
import struct

import numpy as np
import pytest
import rich.console
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from posenc_jax.lab.evaluate import (
    depth_pictures,
    difference_pictures,
    picture_style,
    pictures,
    redraw,
)
from posenc_jax.lab.evaluate.measurement import Measurement
from posenc_jax.lab.evaluate.results import Results, print_tables, read
from posenc_jax.lab.evaluate.series import RunResult, group
from posenc_jax.lab.evaluate.tables import tables
from posenc_jax.lab.files import disk
from posenc_jax.protocol.errors import shortened


def measured(protocol, length, value, position=(None, None)):
    metric = 'exact_match' if protocol == 'exact_match' else 'perplexity'
    return Measurement(
        protocol, length, metric, value, 0.9 * value, 1.1 * value, math.log(value), 1.5, 0.5, 1000,
        50, *position
    )  # fmt: skip


def run(encoding, seed, factor, extend='', width=64):
    measurements = [
        measured(protocol, length, 5 + factor * length / 64 * worse)
        for protocol, worse in (('nonoverlapping', 1.0), ('sliding', 0.9), ('same_tokens', 0.8))
        for length in (64, 128, 256, 512)
    ]
    edges = (0, 45, 64, 91, 128, 181, 256, 362, 512)
    measurements += [
        measured('per_position', 512, 5 + factor * high / 64, (low, high))
        for low, high in zip(edges, edges[1:])
    ]
    return RunResult(
        run=f'runs/{encoding}-{seed}', encoding=encoding, extend=extend, task='language()',
        dataset='pydoc_topics',
        split='test', positions='sampled', seed=seed, step=100, train_length=64, parameters=12345,
        settings={'encoding': encoding, 'model.width': width}, measurements=tuple(measurements),
    )  # fmt: skip


NUMBERS, DATE = ['results.json', 'results.csv'], '2026-01-02T03:04:05+00:00'


def results(*runs):
    return Results(tuple(runs), DATE, {'jax': '0.0.1', 'flax': '0.0.2'})


def with_measurements(one, *measurements, **fields):
    return dataclasses.replace(one, measurements=measurements, **fields)


def names_of(paths):
    return [path.name for path in paths]


def test_seeds_are_aggregated_as_mean_smallest_and_largest():
    rope, alibi = group([run('rope()', 0, 4), run('alibi()', 0, 0), run('rope()', 1, 2)])
    assert rope.label == 'rope()' and [r.seed for r in rope.runs] == [0, 1]
    assert alibi.label == 'alibi()' and [r.seed for r in alibi.runs] == [0]
    for series, expected in ((rope, (11, 9, 13)), (alibi, (5, 4.5, 5.5))):
        found = series.estimates('nonoverlapping')[128, None]
        assert (found.value, found.low, found.high) == pytest.approx(expected)


def test_series_are_told_apart_by_extension_and_settings():
    extended = run('rope()', 0, 1, extend='yarn(factor=8.0)')
    series = group([run('rope()', 0, 4), extended, run('rope()', 0, 3, width=32)])
    narrow, wide = 'rope() (model.width=32)', 'rope() (model.width=64)'
    assert [s.label for s in series] == [wide, 'rope() + yarn(factor=8.0)', narrow]


def test_files(tmp_path):
    found = results(run('rope()', 0, 4), run('alibi()', 0, 0))
    paths = found.write(tmp_path / 'new' / 'eval')
    assert names_of(paths) == [*NUMBERS, 'by_length.png', 'by_position.png', 'pictures.md']
    content = json.loads(paths[0].read_text())
    assert content['lengths'] == [64, 128, 256, 512] and len(content['results']) == 2 * (3 * 4 + 8)
    assert content['results'][0] == {
        **dict(run='runs/rope()-0', encoding='rope()', extend='', task='language()', seed=0),
        **dict(dataset='pydoc_topics', split='test', positions='sampled', step=100),
        **dict(train_length=64, parameters=12345, bigram=None, fivegram=None),
        **dict(counted='', chance=None),
        **dict(protocol='nonoverlapping', length=64, metric='perplexity', value=9.0),
        **dict(low=8.1, high=9.9, nll=math.log(9), bits_per_byte=1.5, token_accuracy=0.5),
        **dict(tokens=1000, samples=50, position_low=None, position_high=None, depth=None),
        **dict(drawn=None, date=DATE, jax_version='0.0.1', flax_version='0.0.2'),
    }
    with paths[1].open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(content['results'])
    assert rows[-1]['encoding'] == 'alibi()' and rows[-1]['position_high'] == '512'
    for path in paths[2:-1]:
        data = path.read_bytes()
        width, height = struct.unpack('>II', data[16:24])
        assert data[:4] == b'\x89PNG' and width > 500 and height > 400 and len(data) > 10_000


def test_each_picture_stands_beside_the_command_that_draws_it_again(tmp_path, monkeypatch):
    folder = tmp_path / 'a b'
    drawn = [folder / name for name in ('by_length.png', 'differences.png', 'map_2.png')]
    text = redraw.write(drawn, 'python eval.py --run=c').read_text()
    again = f"Drawn again by `python eval.py --also='{folder}'`.\n"
    assert text.count(again) == 2 and f'![by_length](by_length.png)\n\n{again}' in text
    assert '![map_2](map_2.png)\n\nDrawn again by `python eval.py --run=c`.\n' in text
    monkeypatch.setattr(redraw, 'PICTURES', {'by': 'of a run, whose numbers are not kept'})
    found = results(run('rope()', 0, 4, extend='yarn(factor=2.0)'), run('alibi()', 0, 0))
    text = found.write(folder)[-1].read_text()
    runs = "'--run=runs/rope()-0 | yarn(factor=2.0)' '--run=runs/alibi()-0'"
    assert f"`python eval.py {runs} '--out={folder}'`" in text
    assert (
        '`python eval.py --run=d`' in found.write(folder, 'python eval.py --run=d')[-1].read_text()
    )


def test_overflowed_perplexity_is_valid_json(tmp_path):
    one, overflown = run('rope()', 0, 4), dict(value=math.inf, high=math.inf, nll=800.0)
    endless = dataclasses.replace(one.measurements[0], **overflown)
    paths = results(with_measurements(one, endless)).write(tmp_path)
    (row,) = json.loads(paths[0].read_text(), parse_constant=pytest.fail)['results']
    assert row['value'] is None and row['nll'] == 800.0


def test_tables_show_every_series_and_length():
    found = results(run('rope()', 0, 4), run('rope()', 1, 2), run('t5_rpe()', 0, 0))
    text, _ = printed(found)
    names = ('rope()', '2 runs', 't5_rpe()', 'same_tokens')
    numbers = ('512', '8x', '11.00', '9.00-13.00', '362-511')
    assert [word for word in (*names, *numbers) if word not in text] == []


def printed(found, width=140):
    """The cells of every line of the tables."""
    console = rich.console.Console(record=True, width=width, file=open('/dev/null', 'w'))
    for table in tables(found):
        console.print(table)
    text = console.export_text()
    return text, [re.split(r'\s*[│┃]\s*', line.strip()) for line in text.splitlines()]


def with_tokens(one, counts):
    """The run with these numbers of scored tokens by protocol, those of 'per_position' for its
    buckets in a row.
    """
    places = iter(counts['per_position'])
    of = lambda m: next(places) if m.protocol == 'per_position' else counts[m.protocol]
    return with_measurements(one, *(dataclasses.replace(m, tokens=of(m)) for m in one.measurements))


BUCKETS = (11, 19, 27, 37, 53, 75, 106, 4150)
COUNTS = dict(nonoverlapping=32768, sliding=17408, same_tokens=512, per_position=BUCKETS)


def test_tables_say_how_many_tokens_were_scored():
    """Protocols score different ones, so their perplexities of one length differ; the tables show
    that they do.
    """
    one = with_tokens(run('rope()', 0, 4), COUNTS)
    two = with_tokens(run('t5_rpe()', 0, 0), {**COUNTS, 'sliding': 999})
    text, lines = printed(results(one, two))
    column = [line[3] for line in lines if len(line) > 5 and line[1] in ('rope()', 't5_rpe()')]
    assert column == ['32,768', '32,768', '17,408', '999', '512', '512']
    heads = [line[1:4] for line in lines if len(line) > 4]
    assert heads.count(['encoding', 'trained', 'tokens']) == 3
    buckets = [line[1:3] for line in lines if len(line) == 6 and '-' in line[1]]
    edges = '0-44 45-63 64-90 91-127 128-180 181-255 256-361 362-511'.split()
    assert buckets == [[edge, f'{count:,}'] for edge, count in zip(edges, BUCKETS)]
    note = 'each protocol scores tokens of its own: compare within a table'
    assert note in ' '.join(text.split())
    only = with_measurements(one, *one.measurements[:4])
    assert 'of its own' not in printed(results(only))[0]


def test_numbers_that_differ_between_lengths_are_a_range():
    one = run('rope()', 0, 4)
    varied = (dataclasses.replace(m, tokens=m.length) for m in one.measurements)
    text, _ = printed(results(with_measurements(one, *varied)))
    assert '64-512' in text


def test_panels_say_how_many_tokens_were_scored(tmp_path, monkeypatch):
    titles, finish = [], pictures._finish
    noted = lambda axis, *rest: (finish(axis, *rest), titles.append(axis.get_title()))
    monkeypatch.setattr(pictures, '_finish', noted)
    one = run('rope()', 0, 4)
    answers = with_measurements(one, measured('exact_match', 64, 0.5))
    for shown in (with_tokens(one, COUNTS), answers):
        results(shown).write(tmp_path)
    tokens = dict(
        nonoverlapping='32,768', sliding='17,408', same_tokens='512', per_position='4,478'
    )
    expected = [f'{name.replace("_", " ")}\n{count} tokens' for name, count in tokens.items()]
    assert titles == [*expected, 'exact match\n50 answers']


def test_a_pipe_has_120_columns(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '40')
    print_tables(results(*(run(f'alibi() | window(size={n})', 0, 4) for n in range(9))))
    assert 80 < max(map(len, capsys.readouterr().out.splitlines())) <= 120


def test_exact_match_has_one_panel_and_no_positions(tmp_path):
    answers = (measured('exact_match', n, 0.5) for n in (10, 20))
    one = with_measurements(run('rope()', 0, 4), *answers)
    assert names_of(results(one).write(tmp_path)) == [*NUMBERS, 'by_length.png', 'pictures.md']


def test_results_without_pictures_have_no_page_of_them(tmp_path):
    one = with_measurements(run('rope()', 0, 4), measured('lossless', 64, 5.0))
    assert names_of(results(one).write(tmp_path)) == NUMBERS
    assert not (tmp_path / 'pictures.md').exists()


def deep(values, **changes):
    """A run with exact match {(length, depth): value}."""
    made = (
        dataclasses.replace(measured('exact_match', n, 0.5), value=v, depth=d)
        for (n, d), v in values.items()
    )
    return with_measurements(run('rope()', 0, 4, **changes), *made, task='passkey_text()')


VALUES = {(n, d): round(1 - n / 1000 - d / 4, 3) for n in (32, 64, 128) for d in (0.0, 0.5, 1.0)}


def test_depths_are_in_the_files_the_table_and_a_heat_map(tmp_path):
    half = deep({k: v / 2 for k, v in VALUES.items()}, extend='yarn(factor=2.0)')
    found = results(deep(VALUES), half)
    paths = found.write(tmp_path)
    assert names_of(paths) == [*NUMBERS, 'by_depth.png', 'pictures.md']
    rows = json.loads(paths[0].read_text())['results']
    assert {(r['length'], r['depth']): r['value'] for r in rows if not r['extend']} == VALUES
    with paths[1].open() as file:
        assert [float(row['depth']) for row in csv.DictReader(file)] == [d for _, d in VALUES] * 2
    assert paths[2].read_bytes()[:4] == b'\x89PNG' and paths[2].stat().st_size > 10_000
    _, lines = printed(found)
    answers = [line[3] for line in lines if len(line) > 6 and line[2] == '64']
    assert answers == ['50', '50']  # of a cell
    shown = [line[4:8] for line in lines if len(line) > 7 and line[4] in ('0', '0.5', '1')]
    line_of = lambda d, by: [f'{d:g}', *(f'{VALUES[n, d] / by:.3f}' for n in (32, 64, 128))]
    assert shown == [line_of(d, by) for by in (1, 2) for d in (0.0, 0.5, 1.0)]


@pytest.mark.parametrize(
    'trained, line, label',
    [
        (64, 1.5, 'trained: 64'),
        (100, 1.5, 'trained: 100'),
        (128, 2.5, 'trained: 128'),
        (8, -0.5, '\N{LEFTWARDS ARROW} trained: 8'),
        (999, 2.5, 'trained: 999 \N{RIGHTWARDS ARROW}'),
    ],
)
def test_numbers_of_a_heat_map(trained, line, label):
    missing = {k: v for k, v in VALUES.items() if k != (64, 0.5)}
    (series,) = group([dataclasses.replace(deep(missing), train_length=trained)])
    axis = Figure().subplots()
    image = depth_pictures._draw_depth(axis, series, [32, 64, 128], [0.0, 0.5, 1.0])
    assert image.get_clim() == (0, 1)
    cells = {t.get_position(): t.get_text() for t in axis.texts[:-1]}
    drawn = [[missing.get((n, d), np.nan) for n in (32, 64, 128)] for d in (0.0, 0.5, 1.0)]
    expected = {(x, y): f'{value:.2f}' for (y, x), value in np.ndenumerate(drawn)}
    del expected[1, 1]
    assert cells == expected
    np.testing.assert_array_equal(np.ma.filled(image.get_array(), np.nan), drawn)
    assert [t.get_text() for t in axis.get_xticklabels()] == ['32', '64', '128']
    assert [t.get_text() for t in axis.get_yticklabels()] == ['0', '0.5', '1']
    assert axis.get_ylim()[0] > axis.get_ylim()[1]  # the beginning of the text is at the top
    (mark,) = axis.get_lines()
    assert mark.get_xdata()[0] == line and axis.texts[-1].get_text() == label


def test_runs_with_and_without_depths_have_a_picture_each(tmp_path):
    plain = with_measurements(run('alibi()', 0, 4), measured('exact_match', 64, 0.5))
    paths = results(deep(VALUES), plain).write(tmp_path)
    assert names_of(paths) == [*NUMBERS, 'by_depth.png', 'by_length.png', 'pictures.md']


def test_a_long_title_stays_within_the_figure():
    long = f'passkey_text(tokenizer={"/models/M" * 40!r})'
    for width in (4.0, 12.0):
        figure = Figure(figsize=(width, 4))
        FigureCanvasAgg(figure).draw()
        picture_style.set_title(figure, group([dataclasses.replace(deep(VALUES), task=long)]))
        title = figure._suptitle
        assert title.get_window_extent().x1 <= figure.bbox.x1
        assert title.get_text().replace('\n', '').startswith(long)


@pytest.mark.parametrize(
    'wanted, heights, placed',
    [
        ([0, 100], [10, 10], [0, 100]),
        ([50, 50, 50], [10, 10, 10], [40, 50, 60]),
        ([0, 4, 100], [10, 10, 10], [-3, 7, 100]),
        ([0, 8, 12], [10, 10, 10], [-10 / 3, 20 / 3, 50 / 3]),
        ([0, 12, 100], [10, 20, 20], [-4, 11, 100]),
    ],
)
def test_labels_are_moved_apart(wanted, heights, placed):
    assert pictures._spread(wanted, heights) == pytest.approx(placed)


def test_a_long_name_beside_a_curve_has_several_lines_and_is_not_cut():
    name = 'randomized_transformer_xl(max_len=512, draw=1) | learned_absolute(max_len=8192)'
    runs = [run(name, seed, 4) for seed in (0, 1)] + [run('rope()', 0, 5)]
    figure = pictures._lines(group(runs), ['nonoverlapping'], pictures._draw_length)
    texts = [t for t in figure.axes[0].texts if 'table' not in t.get_text()]
    assert name in [text.get_text().replace('\n', ' ') for text in texts]
    figure.savefig(io.BytesIO())  # which lays the panels out
    first, second = (Text.get_window_extent(text) for text in texts)  # without their lines
    assert not first.overlaps(second)
    assert max(first.x1, second.x1) <= figure.bbox.x1


def test_long_labels_leave_room_for_what_they_label():
    name = 'rope(freqs=longrope(long=(' + ', '.join(['1.2345'] * 40) + '), factor=4.0))'
    short = shortened(name)
    assert len(short) == 49 and short.startswith('rope(freqs=longrope(long=(1.2345')
    assert short.endswith('factor=4.0))')
    assert shortened('rope() + yarn(factor=4.0)') == 'rope() + yarn(factor=4.0)'
    for table in tables(results(run(name, 0, 4))):
        heads = [column.header for column in table.columns]
        assert name not in str([*heads, *table.columns[0].cells])


def test_a_narrow_terminal_gets_several_tables_without_cut_numbers():
    console = rich.console.Console(width=80, file=io.StringIO())
    lengths = [64 << i for i in range(12)]
    several = (measured('nonoverlapping', n, 50 + n / 10) for n in lengths)
    found = results(with_measurements(run('alibi()', 0, 4), *several))
    for table in tables(found, console):
        console.print(table)
    shown = console.file.getvalue()
    assert '…' not in shown and max(map(len, shown.splitlines())) <= 80
    assert set(map(str, lengths)) <= set(shown.split()) and '512x' in shown.split()


def test_tables_by_position_of_many_long_names_are_cut_into_several():
    names = [f'randomized_pe(max_len={n}) | learned_absolute(max_len=8192)' for n in range(8, 13)]
    console = rich.console.Console(width=80, file=io.StringIO())
    made = tables(results(*(run(name, 0, 4) for name in names)), console)
    own = [table for table in made if table.columns[0].header == 'positions']
    assert len(own) > 1 and sum(len(table.columns) - 2 for table in own) == len(names)
    for table in own:
        console.print(table)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.count('45-63') == len(own)
    letters = re.sub(r'[^a-z0-9]', '', shown)
    assert 'randomizedp' in letters and '8192' in letters


def test_a_table_without_a_length_is_not_cut_into_smaller_ones():
    console = rich.console.Console(width=20, file=io.StringIO())
    both = run('alibi()', 0, 4), run('alibi()', 1, 4)
    few = (m for m in both[0].measurements if m.protocol == 'nonoverlapping')
    found = results(with_measurements(both[0], *few), both[1])
    (sliding,) = (table for table in tables(found, console) if 'sliding' in table.title)
    assert [column.header for column in sliding.columns][:2] == ['encoding', 'trained']


def test_lengths_below_the_trained_one_are_shown_as_fractions():
    short = with_measurements(run('alibi()', 0, 4), measured('nonoverlapping', 8, 5.0))
    (table,) = tables(results(short))
    assert table.columns[-1].header == '8\n1/8x'


NAME = '[/red]rope$_{$ \\frac$\x1b[2J\r\u202e'  # markup, wrong mathematics and control characters


def test_names_of_others_are_shown_letter_by_letter(tmp_path, monkeypatch):
    answers = (dataclasses.replace(measured('exact_match', n, 0.5), depth=0.5) for n in (64, 128))
    for one in (run(NAME, 0, 4), with_measurements(run(NAME, 0, 4), *answers)):
        named = dataclasses.replace(one, task=NAME, dataset=NAME, split=NAME)
        set_otherwise = dataclasses.replace(named, settings={NAME: NAME})
        other = (dataclasses.replace(m, protocol=m.protocol + NAME) for m in one.measurements[:2])
        found = results(named, set_otherwise, with_measurements(named, *other, encoding='nope()'))
        text, _ = printed(found, width=400)
        assert text.replace('\n', '').isprintable() and r'[/red]rope$_{$ \frac$\x1b[2J\r' in text
        *written, page = found.write(tmp_path, f'python eval.py --run={NAME}')
        assert all(path.stat().st_size > 1000 for path in written if path.suffix)
        monkeypatch.setattr(redraw, 'PICTURES', {'by': 'of a run'})
        text = redraw.write(written[-1:], f'python eval.py --run={NAME}').read_text()
        assert text.replace('\n', '').isprintable() and r'\x1b[2J\r' in text and page.exists()


def test_runs_without_a_protocol_of_others_have_empty_cells(tmp_path):
    answers = with_measurements(run('nope()', 0, 4), measured('exact_match', 64, 0.5))
    found = results(run('rope()', 0, 4), answers)
    _, lines = printed(found)
    assert ['│', 'nope()', '64', '', '', '', '', ''] in [['│', *line[1:-1]] for line in lines]
    assert 'by_position.png' in names_of(found.write(tmp_path))


def test_letters_of_a_picture_are_those_of_its_names():
    figure = Figure()
    axis = figure.subplots()
    axis.plot([1, 1000], [1, 1000], label='a$b$')
    axis.set(xscale='log', title='$_{$\nsecond\x1b line')
    legend = axis.legend()
    for _ in range(2):
        disk.show_letters(figure)
        FigureCanvasAgg(figure).draw()
        assert axis.get_title() == '\\$_{\\$\nsecond\\x1b line'
        assert legend.get_texts()[0].get_text() == r'a\$b\$'
        assert r'$\mathdefault{10^{1}}$' in [text.get_text() for text in axis.get_xticklabels()]


NO_SHARE = dict(protocol='exact_match', value=-1e308)


@pytest.mark.parametrize(
    'row, changes, message',
    [
        (0, dict(length='64'), "length is '64'"),
        (0, dict(length=0), 'length is 0'),
        (0, dict(train_length=True), 'train_length is True'),
        (0, dict(encoding=['\n\x1b']), 'encoding is '),
        (0, dict(low=None), 'low and high are not both null'),
        (-1, dict(position_low=None), 'per_position has no pos'),
        (0, dict(position_low=3), "'nonoverlapping' has positions"),
        (0, dict(value=10**400), 'OverflowError'),
        (0, NO_SHARE, "value of 'exact_match' is -1e.308, not a share"),
        (None, dict(documents='../secret.csv'), 'documents is .../secret.csv., not'),
        (None, dict(results=[3]), 'TypeError'),
        (None, dict(settings=3), 'TypeError'),
    ],
)
def test_results_that_are_wrong_are_refused_in_one_line(tmp_path, row, changes, message):
    results(run('rope()', 0, 4)).write_numbers(tmp_path)
    assert [one.encoding for one in read(tmp_path)] == ['rope()']
    content = json.loads((tmp_path / 'results.json').read_text())
    (content if row is None else content['results'][row]).update(changes)
    (tmp_path / 'results.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f'was not written by an evaluation.*{message}') as found:
        read(tmp_path)
    assert str(found.value).isprintable()


def test_files_that_are_no_results_are_refused(tmp_path):
    for text in ('[' * 5000, '[]', '3', '', '{"results": []' + '}' * 9, '"\x1b'):
        (tmp_path / 'results.json').write_text(text)
        with pytest.raises(ValueError, match='was not written by an evaluation') as found:
            read(tmp_path)
        assert str(found.value).isprintable()
    os.truncate(tmp_path / 'results.json', 2**40)
    with pytest.raises(ValueError, match='of 1099511627776 bytes would take 16 TiB of memory'):
        read(tmp_path)


def with_documents(result, documents=12):
    """A run with the losses of documents, which differ from each other."""
    more = lambda m, i: 80 * (m.nll + 0.01 * i)
    return dataclasses.replace(
        result,
        measurements=tuple(
            dataclasses.replace(
                m, drawn='documents', groups=tuple((i, 80, more(m, i)) for i in range(documents))
            )
            for m in result.measurements
            if m.position_low is None
        ),
    )


def test_paired_differences_are_drawn_and_drawn_again_from_the_files(tmp_path):
    found = results(*(with_documents(run(e, 0, f)) for e, f in (('rope()', 4), ('alibi()', 0))))
    written = found.write(tmp_path)
    assert 'differences.png' in names_of(written)
    (d, *_) = [d for d in found.differences if d.length == 512 and d.protocol == 'sliding']
    (panel, *_) = difference_pictures._figure([d]).axes
    (bars,) = panel.containers
    assert bars.lines[0].get_ydata() == pytest.approx(d.value) and d.value < 0
    (line,) = bars.lines[2][0].get_segments()
    assert line[:, 1] == pytest.approx([d.low, d.high])
    for path in tmp_path.glob('*.png'):
        path.unlink()
    before = (tmp_path / 'results.json').read_text()
    from posenc_jax.lab.cli.eval import main

    assert main([f'--also={tmp_path}']) == 0
    assert {path.name for path in tmp_path.glob('*.png')} == {'by_length.png', 'differences.png'}
    assert (tmp_path / 'results.json').read_text() == before


@pytest.mark.parametrize('count, bands', [(3, 3), (4, 0)])
def test_many_lines_have_bars_in_place_of_bands(count, bands):
    figure = Figure()
    axis = figure.subplots()
    series = group([run(f'alibi(slopes=({n}.0,))', 0, n) for n in range(count)])
    pictures._draw_length(axis, 'sliding', series)
    kinds = [type(c).__name__ for c in axis.collections]
    assert kinds.count('LineCollection') == (0 if bands else count)
    assert len(kinds) == count


def test_classes_have_a_line_of_chance_and_the_axis_says_what_is_counted():
    own = run('rope_axial()', 0, 0)
    share = dataclasses.replace(measured('exact_match', 8, 0.5), low=0.4, high=0.6)
    own = dataclasses.replace(
        own, counted='side of an image', chance=0.1, measurements=(share,), dataset=''
    )
    axis = Figure().subplots()
    pictures._draw_length(axis, 'exact_match', group([own]))
    assert axis.get_xlabel() == 'side of an image'
    assert 'chance 0.1' in [text.get_text() for text in axis.texts]


@pytest.mark.parametrize(
    'called, expected', [('eval.py', 'python eval.py'), ('bin/posenc-train', 'posenc-eval')]
)
def test_a_picture_is_drawn_again_by_the_command_that_there_is(monkeypatch, called, expected):
    monkeypatch.setattr('sys.argv', [called])
    assert redraw.command(pathlib.Path('a b')) == f"{expected} --also='a b'"


def test_trained_lengths_stand_above_the_panel(tmp_path):
    axis = Figure().subplots()
    found = group(
        [run('rope()', 0, 0), dataclasses.replace(run('alibi()', 0, 0), train_length=128)]
    )
    pictures._draw_length(axis, 'sliding', found)
    pictures._finish(axis, 'sliding', found)
    (above,) = axis.child_axes
    names = [label.get_text() for label in above.get_xticklabels()]
    assert names == ['trained: 64', 'trained: 128']


def test_labels_of_trained_lengths_that_are_near_each_other_do_not_overlap():
    figure = Figure(figsize=(4.6, 4.0))
    axis = figure.subplots()
    axis.set_xscale('log', base=2)
    axis.set_xlim(32, 2048)
    pictures._mark_trained(axis, [64, 80, 96, 512])
    figure.canvas.draw()
    (above,) = axis.child_axes
    labels = [label for label in above.get_xticklabels() if label.get_text()]
    assert [label.get_text() for label in labels] == ['trained: 64, 80, 96', 'trained: 512']
    left, right = (label.get_window_extent() for label in labels)
    assert left.x1 < right.x0
