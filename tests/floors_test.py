"""Tests of the structure of the package, which docs/architecture.md describes: a module imports
only from its own floor and lower ones, no two folders import each other, and modules are short.
"""

import ast
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'posenc_jax'
FLOORS = (
    ('version', 'core'),
    ('positions', 'embedding', 'rotation', 'logits', 'mask', 'collect', 'extension'),
    ('model',),
    ('mixers', 'decoding', 'conversion', 'tasks'),
    ('run',),
    ('training', 'evaluation'),
    ('analysis', 'search', 'gallery', 'catalog', 'generate'),
    ('functional', 'linen', '__init__'),  # what a user of the whole package imports
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(PACKAGE.rglob('*.py'))
LINES = 400


def room(path: pathlib.Path) -> str:
    """The folder of a module under the package, or the module itself where it lies in none."""
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def imported(path: pathlib.Path) -> set[str]:
    """The folders and top modules of the package that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == 'posenc_jax':
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or '').startswith('posenc_jax.'):
            found.add(node.module.split('.')[1])
        elif isinstance(node, ast.Import):
            names = [alias.name.split('.') for alias in node.names]
            found |= {(*name, '__init__')[1] for name in names if name[0] == 'posenc_jax'}
    return {name if name in FLOOR else '__init__' for name in found} - {room(path)}


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_a_higher_floor(path):
    own = room(path)
    assert own in FLOOR, f'{own} has no floor; give it one in FLOORS'
    higher = {name for name in imported(path) if FLOOR[name] > FLOOR[own]}
    assert not higher, f'floor {FLOOR[own]} imports {sorted(higher)}'


def test_no_two_folders_import_each_other():
    arrows = {(room(path), name) for path in MODULES for name in imported(path)}
    circles = {tuple(sorted(arrow)) for arrow in arrows if arrow[::-1] in arrows}
    assert not circles


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_short(path):
    assert len(path.read_text().splitlines()) <= LINES
