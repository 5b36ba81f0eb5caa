"""Folders of graphs: edge lists, labels of graphs and classes of nodes with damaged lines and
bytes, with too many nodes, and folders of other files.
"""

import dataclasses
import os
import pathlib
import random
import shutil

import numpy as np

from benchmarks.fuzz.damage import TEXTS, changed_bytes, file_name, odd_file, remove
from benchmarks.fuzz.target import CANARY, Target
from posenc_jax.lab.config import defaults
from posenc_jax.lab.runs.sizes import make_task
from posenc_jax.lab.tasks.graphs import tasks
from posenc_jax.lab.tasks.graphs.edge_lists import LABELS, MAX_NODES, NODES
from posenc_jax.lab.tasks.task import SPLITS

WORDS = (
    '-1', '1.0', '1e3', '0x1', '1_0', '٣', '²', '10' * 9, '9' * 18, '9' * 19, '9' * 5000, 'nan',
    'inf', '1e400', '-0', '+1', 'u', 'x' * 200_000, '#', '0', '1', '2', '7', '\ufeff0', '\0',
    *TEXTS,
)  # fmt: skip
LINES = (
    '', '# a comment', '0', '0 0', '0 1 2', '0 1', '1 0', 'path 0', 'path 1', 'path 0 0', 'none 3',
    '7' * 5000, '0 1 ' * 5000, '\r', '\x0c', '0\t1', '0 1\r\n1 2', '0\u20281', '0\x851',
)  # fmt: skip
BIG = 'big'  # a folder of two files that are too large for each try to write them anew


def prepare(folder: pathlib.Path) -> None:
    tree = folder / 'tree'
    tree.mkdir()
    graphs = {
        'path': [(0, 1), (1, 2)],
        'star': [(0, 3), (0, 5), (0, 7)],
        'ring': [(0, 1), (1, 2), (2, 0)],
    }
    graphs |= {f'edge{number}': [(number, 9)] for number in range(2)}
    nodes = {
        name: sorted({node for edge in edges for node in edge}) for name, edges in graphs.items()
    }
    for name, edges in graphs.items():
        (tree / f'{name}.txt').write_text(''.join(f'{u} {v}\n' for u, v in edges))
    (tree / LABELS).write_text(''.join(f'{name} {i % 2}\n' for i, name in enumerate(graphs)))
    classes = [f'{name} {node} {node % 3}\n' for name in graphs for node in nodes[name]]
    (tree / NODES).write_text(''.join(classes))
    (folder / BIG).mkdir()
    for count in (MAX_NODES, MAX_NODES + 1):
        lines = ''.join(f'{node}\n' for node in range(count))
        (folder / BIG / f'{count}.txt').write_text(lines)


def changed_lines(rng: random.Random, data: bytes) -> tuple[bytes, str]:
    """A text with another line, a line less or twice, or another word in a line."""
    lines = data.decode('utf-8', 'surrogateescape').split('\n')
    place = rng.randrange(len(lines))
    match rng.randrange(6):
        case 0:
            del lines[place]
            what = f'no line {place}'
        case 1:
            lines.insert(place, lines[rng.randrange(len(lines))])
            what = 'a line twice'
        case 2:
            lines.insert(place, rng.choice(LINES))
            what = f'line {lines[place][:20]!r}'
        case _:
            words = lines[place].split(' ')
            words[rng.randrange(len(words))] = rng.choice(WORDS)
            lines[place] = ' '.join(words)
            what = f'line {lines[place][:40]!r}'
    return '\n'.join(lines).encode('utf-8', 'surrogateescape'), what


def harm(rng: random.Random, root: pathlib.Path, good: pathlib.Path, beside: pathlib.Path) -> str:
    """Changes a file of a folder, or which files there are; what was done."""
    path = rng.choice(sorted(root.iterdir()) or [root / 'none.txt'])
    whole, new = is_text(path), root / f'{file_name(rng)}.txt'
    match rng.randrange(12):
        case 0:
            return f'{path.name} is {odd_file(rng, path, beside)}'
        case 1 if whole:
            path.rename(new)
            return f'{path.name} has another name'
        case 2 if not os.path.lexists(new):
            new.write_text('0 1\n')
            return 'one more graph'
        case 3:
            kept = rng.randrange(3)
            for other in sorted(root.glob('[!l]*.txt'))[kept:]:
                remove(other)
            return f'{kept} graphs'
        case 4 if rng.random() < 0.1 and is_text(root / LABELS):
            return large(rng, root, good)
        case 5 if whole:
            path.write_bytes(changed_bytes(rng, path.read_bytes()))
            return f'{path.name}: bytes'
        case _ if whole:
            found, what = changed_lines(rng, path.read_bytes())
            path.write_bytes(found)
            return f'{path.name}: {what}'
    return 'nothing'


def is_text(path: pathlib.Path) -> bool:
    return path.is_file() and not path.is_symlink() and path.stat().st_size < 2**20


def large(rng: random.Random, root: pathlib.Path, good: pathlib.Path) -> str:
    """Many lone nodes in one file or in forty of them, or a text of terabytes."""
    if rng.random() < 0.3:
        with (root / 'long.txt').open('w') as file:
            os.truncate(file.fileno(), 2**42)
        return 'a text of terabytes'
    count, files = rng.choice((MAX_NODES, MAX_NODES + 1)), rng.choice((1, 40))
    with (root / LABELS).open('a') as labels:
        for number in range(files):
            remove(root / f'big{number}.txt')
            os.link(good / BIG / f'{count}.txt', root / f'big{number}.txt')
            labels.write(f'big{number} 1\n')
    remove(root / NODES)
    return f'{files} graphs of {count} nodes'


@dataclasses.dataclass(frozen=True)
class Given:
    """The spec string of a task, what is read of it, and what was done to the files."""

    spec: str
    split: str
    length: int | tuple[int, int]
    what: tuple[str, ...]


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> Given:
    root = own / (file_name(rng) if rng.random() < 0.1 else 'graphs')
    shutil.copytree(good / 'tree', root)
    if rng.random() < 0.5:
        (root / NODES).unlink()
    what = [
        harm(rng, root, good, own.with_name(CANARY)) for _ in range(rng.choice((0, 1, 1, 1, 2, 4)))
    ]
    options = rng.choice(('', '', ', by_node=True', ", features='rwse(steps=2)'"))
    if any(done.endswith(f'{MAX_NODES} nodes') for done in what):
        options = ''  # features of so many nodes may take minutes
    spec = f'edge_lists(folder={str(root)!r}{options})'
    length = rng.choice(((1, 8), (1, 8), (1, 8), (3, 4), 3, (2, 64)))
    return Given(spec, rng.choice(SPLITS), length, (root.name, options, *what))


def read(given: Given) -> None:
    config = defaults.get_config().unlock()
    config.task = given.spec
    try:
        task = make_task(config)
        classes = task.output_size
        data = task.dataset(length=given.length, batch_size=2, seed=0, split=given.split)[0]
        assert np.isfinite(data['vectors']).all(), 'features were read that are not finite'
        assert (data['targets'] < classes).all(), 'a class was read that the task does not have'
    finally:
        tasks._read.cache_clear()  # no folder is read again


TARGET = Target(
    make=make,
    read=read,
    prepare=prepare,
    show=lambda given: f'{given.what}, {given.split}, {given.length}',
)
