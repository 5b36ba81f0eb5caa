"""Runs the notebooks from top to bottom and keeps their outputs in the files.

    python -m notebooks.run [--small] [NAME...]

Without a name all notebooks run. A notebook runs in an empty folder, so it writes nothing into the
repository. What it keeps of the machine is removed: times, versions and the name of the kernel.
With --small they run with the values in `SMALL`, and the files stay as they are.
"""

import os
import pathlib
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent
NAMES = ('attention', 'compare', 'smollm2')
# Values for a run that only shows that nothing fails: see `with_values`.
SMALL = {
    'attention': {
        **{'STEPS': 3, 'TIMES': (1,), 'ROWS': 4, 'CHECK': False},
        'ENCODINGS': ('rope()', 'rope() | alibi()'),
    },
    'compare': {
        **{'STEPS': 4, 'TIMES': (1, 2), 'WIDTH': 32, 'TOKENS': 1024},
        'ENCODINGS': ('rope()', 'alibi()'),
    },
    'smollm2': {'HALF': 16, 'WINDOWS': 2, 'EXTENSIONS': ('yarn(factor=4.0)',)},
}
METADATA = {
    'kernelspec': {'name': 'python3', 'display_name': 'Python 3', 'language': 'python'},
    'language_info': {'name': 'python'},
}


def read(name: str) -> nbformat.NotebookNode:
    """The notebook of a name in `NAMES`."""
    return nbformat.read(FOLDER / f'{name}.ipynb', as_version=4)


def with_values(notebook: nbformat.NotebookNode, values: Mapping[str, Any]) -> None:
    """Sets variables at the end of the cell with the tag `parameters`, in place.

    Raises:
      ValueError: the cell does not assign one of these variables.
    """
    (cell,) = [cell for cell in notebook.cells if 'parameters' in cell.metadata.get('tags', ())]
    for name, value in values.items():
        if not re.search(rf'^{name} = ', cell.source, re.M):
            raise ValueError(f'the cell with the parameters does not assign {name}')
        cell.source += f'\n{name} = {value!r}'


def execute(notebook: nbformat.NotebookNode) -> None:
    """Runs all cells in a new kernel and writes their outputs into the notebook, in place.

    Raises:
      nbclient.exceptions.CellExecutionError: a cell failed; the message shows it.
    """
    python_path = os.pathsep.join(
        filter(None, [str(FOLDER.parent), os.environ.get('PYTHONPATH', '')])
    )
    # The flags of the tests slow compiled programs down; a notebook runs as a reader runs it.
    env = {**os.environ, 'PYTHONPATH': python_path, 'XLA_FLAGS': ''}
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=None,
            kernel_name='python3',
            record_timing=False,
            store_widget_state=False,
            coalesce_streams=True,
            resources={'metadata': {'path': folder}},
        )
        client.execute(env=env)


def clean(notebook: nbformat.NotebookNode) -> None:
    """Removes what tells of the machine, in place."""
    notebook.metadata = nbformat.from_dict(METADATA)
    for cell in notebook.cells:
        cell.metadata = nbformat.from_dict(
            {name: value for name, value in cell.metadata.items() if name == 'tags'}
        )


def main(argv: list[str]) -> int:
    names, small = [name for name in argv if name != '--small'], '--small' in argv
    if unknown := [name for name in names if name not in NAMES]:
        print(f'notebooks.run: {unknown[0]!r} is no notebook; there are {", ".join(NAMES)}')
        return 2
    for name in names or NAMES:
        notebook = read(name)
        if small:
            with_values(notebook, SMALL[name])
            started = time.perf_counter()
            execute(notebook)
            print(f'{name} ran in {time.perf_counter() - started:.0f} s')
            continue
        execute(notebook)
        clean(notebook)
        nbformat.write(notebook, FOLDER / f'{name}.ipynb')
        print(f'notebooks/{name}.ipynb')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
