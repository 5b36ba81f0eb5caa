"""Folders of earlier results, which `eval.py --also` reads: results.json and documents.csv with
damaged fields, numbers and texts, the tables that are printed, and the pictures.
"""

import csv
import dataclasses
import io
import json
import pathlib
import random
import shutil

import matplotlib.figure  # noqa: F401  it takes seconds to import, which are part of no try

from benchmarks.fuzz.damage import TEXTS, changed_bytes, changed_json, odd, odd_file
from benchmarks.fuzz.programs import run
from benchmarks.fuzz.target import CANARY, Target
from posenc_jax.lab.cli import eval as program
from posenc_jax.lab.evaluate import run as evaluation
from posenc_jax.lab.evaluate.measurement import BY_PLANE, Measurement
from posenc_jax.lab.evaluate.results import DOCUMENTS, Results
from posenc_jax.lab.evaluate.series import RunResult
from posenc_jax.lab.files import disk

FILE = 'results.json'
VERSIONS = {'posenc_jax': '1', 'jax': '2', 'flax': '3'}
GROUPS = ((0, 30, 61.0), (1, 40, 75.0), (2, 30, 50.5))
NUMBERS = (
    0,
    -1,
    1e308,
    -1e308,
    1e-320,
    2**31,
    2**63,
    10**400,
    10**5000,
    float('nan'),
    float('inf'),
    '1',
    True,
)
PROTOCOLS = ('sliding', 'per_position', 'exact_match', 'psnr', 'psnr_outside', BY_PLANE, 'lossless',
    'accuracy', 'token_accuracy', 'none', *TEXTS)  # fmt: skip


def measured(protocol: str, length: int, **more) -> Measurement:
    value = 0.5 if protocol in ('exact_match', 'accuracy') else 7.0
    spread = dict(low=0.9 * value, high=1.1 * value)
    fields = dict(metric='perplexity', nll=2.0, bits_per_byte=1.5, token_accuracy=0.5)
    counts = dict(tokens=100, samples=10)
    return Measurement(protocol, length, value=value, **spread, **fields, **counts, **more)


MEASURED = {
    'text': [
        *(measured('sliding', n, drawn='documents', groups=GROUPS) for n in (8, 16)),
        *(measured('per_position', 16, position_low=n, position_high=n + 8) for n in (0, 8)),
    ],
    'answers': [measured('exact_match', n) for n in (8, 16)],
    'depths': [measured('exact_match', n, depth=d) for n in (8, 16) for d in (0.0, 1.0)],
    'points': [
        measured('psnr', 8),
        measured('psnr_outside', 8),
        measured(BY_PLANE, 8, position_low=0, position_high=1),
    ],
}


def result(name: str, seed: int = 0) -> RunResult:
    """A run that was evaluated; those of the same name differ in their seeds."""
    settings = {'encoding': 'rope()', 'task': name, 'model.width': 8, 'eval.lengths': (8, 16)}
    data = 'text' if name == 'text' else ''
    own = f'runs/{name}-{seed}', 'rope()', '', name, data, 'test', 'first', seed, 100, 8, 1000
    return RunResult(*own, settings, tuple(MEASURED[name]))


def prepare(folder: pathlib.Path) -> None:
    for name in MEASURED:
        runs = result(name), result(name, seed=1)
        for number, some in enumerate((runs[:1], runs)):
            Results(some, '2026-01-02T03:04:05+00:00', VERSIONS).write_numbers(
                folder / f'{name}{number}'
            )


def changed_rows(rng: random.Random, text: str) -> str:
    """Results in which one field of one row has another number or text, or of all rows."""
    content = json.loads(text)
    rows = content['results']
    name = rng.choice(sorted(rows[0]))
    known = {'protocol': PROTOCOLS, 'drawn': (*TEXTS, None)}
    usual = TEXTS if isinstance(rows[0][name], str) else NUMBERS
    value = rng.choice(known.get(name, usual))
    value = odd(rng) if rng.random() < 0.2 else value
    for row in rows if rng.random() < 0.5 else [rng.choice(rows)]:
        row[name] = value
    return dumped(content)


def dumped(value: object) -> str:
    """JSON; a whole number of more digits than Python writes stands alone in it."""
    try:
        return json.dumps(value)
    except ValueError:
        return '9' * 5000


def changed_settings(rng: random.Random, text: str) -> str:
    content = json.loads(text)
    fields = rng.choice(content['settings'])
    fields[rng.choice((*fields, *TEXTS))] = rng.choice((odd(rng), *TEXTS))
    return dumped(content)


def changed_table(rng: random.Random, text: str) -> str:
    """A table of documents with another word in a row, or without a row or a column."""
    rows = list(csv.reader(text.splitlines()))
    row = rng.randrange(len(rows))
    match rng.randrange(4):
        case 0:
            del rows[row]
        case 1:
            del rows[row][rng.randrange(len(rows[row]))]
        case _:
            word = rng.choice(
                (
                    *TEXTS,
                    '-1',
                    '10' * 9,
                    '9' * 5000,
                    '1e400',
                    '1.5',
                    '-0',
                    '²',
                    '1_0',
                    '\0',
                    'x' * 200_000,
                )
            )
            rows[row][rng.randrange(len(rows[row]))] = word
    file = io.StringIO()
    csv.writer(file).writerows(rows)
    return file.getvalue()


def harm(rng: random.Random, folder: pathlib.Path, beside: pathlib.Path) -> str:
    """Damages a file of earlier results; what was done."""
    table = folder / DOCUMENTS
    path = table if table.exists() and rng.random() < 0.3 else folder / FILE
    if rng.random() < 0.1:
        return f'{path.name} is {odd_file(rng, path, beside)}'
    if path.is_symlink() or not path.is_file() or path.stat().st_size > 2**20:
        return 'nothing'
    data = path.read_bytes()
    try:
        text = data.decode()
        if path == table:
            text, what = changed_table(rng, text), 'another table'
        else:
            way = rng.choice(
                (changed_rows, changed_rows, changed_rows, changed_settings, changed_tree)
            )
            text, what = way(rng, text), way.__name__
        data = text.encode()
    except Exception:  # it is damaged already
        data, what = changed_bytes(rng, data), 'bytes'
    if rng.random() < 0.1:
        data, what = changed_bytes(rng, data), f'{what}, bytes'
    path.write_bytes(data)
    return f'{path.name}: {what}'


def changed_tree(rng: random.Random, text: str) -> str:
    if rng.random() < 0.05:
        return rng.choice(
            ('[' * 100_000, '{"a":' * 100_000, 'NaN', '', 'null', '{}', '[]', '1' * 10_000)
        )
    return dumped(changed_json(rng, json.loads(text)))


@dataclasses.dataclass(frozen=True)
class Given:
    """Folders of earlier results, the run that is evaluated with them, whether pictures are drawn,
    the folder of the output, and what was done.
    """

    folders: tuple[pathlib.Path, ...]
    name: str
    drawn: bool
    out: pathlib.Path
    what: tuple[str, ...]


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> Given:
    name, folders, what = rng.choice(sorted(MEASURED)), [], []
    for number in range(rng.choice((1, 1, 1, 2))):
        other = name if rng.random() < 0.7 else rng.choice(sorted(MEASURED))
        folder = own / f'earlier{number}'
        shutil.copytree(good / f'{other}{rng.randrange(2)}', folder)
        what += [
            other,
            *(harm(rng, folder, own.with_name(CANARY)) for _ in range(rng.choice((0, 1, 1, 1, 2)))),
        ]
        folders.append(folder)
    return Given(tuple(folders), name, rng.random() < 0.1, own / 'out', (name, *what))


def read(given: Given) -> None:
    """As `eval.py --run=... --also=...`; the run itself is not measured."""
    now = Results((), '2026-01-02T03:04:05+00:00', VERSIONS)

    def evaluate_runs(runs, *, also, after):
        found = dataclasses.replace(now, runs=(*also, result(given.name, seed=7)))
        after(found)
        return found

    usual = evaluation.evaluate_runs, evaluation.prepared, Results.write_pictures, disk.save_figure
    evaluation.evaluate_runs, evaluation.prepared = evaluate_runs, lambda *_: []
    if not given.drawn:
        Results.write_pictures = lambda *_: []
    disk.save_figure = lambda figure, path, dpi: usual[3](figure, path, dpi=40)
    try:
        also = [f'--also={folder}' for folder in given.folders]
        run(program.main, '--run=runs/none', *also, f'--out={given.out}')
    finally:
        evaluation.evaluate_runs, evaluation.prepared = usual[:2]
        Results.write_pictures, disk.save_figure = usual[2:]
    json.loads((given.out / FILE).read_text(), parse_constant=_no_number)


def _no_number(text: str) -> None:
    raise AssertionError(f'{text} was written, which is no JSON')


TARGET = Target(
    make=make, read=read, prepare=prepare, show=lambda given: f'{given.what}, {given.drawn=}'
)
