"""Tests of the structure of the package, which docs/architecture.md describes: a module imports
only from its own floor and lower ones, imports make no circle, and modules are short.
"""

import ast
import graphlib
import importlib
import pathlib

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'posenc_jax'
FLOORS = (
    ('version', 'core'),
    (
        *('positions', 'embedding', 'rotation', 'logits', 'mask', 'collect', 'extension'),
        *('coordinates', 'fields', 'graph'),
    ),
    ('model',),
    ('mixers', 'decoding', 'conversion', 'tasks', 'testing'),
    ('run',),
    ('training', 'evaluation'),
    ('analysis', 'search', 'gallery', 'catalog', 'generate'),
    # what a user of the whole package imports or starts
    ('functional', 'linen', 'commands', '__init__'),
)
FLOOR = {name: number for number, names in enumerate(FLOORS) for name in names}
MODULES = sorted(PACKAGE.rglob('*.py'))
LINES = 400


def room(path: pathlib.Path) -> str:
    """The folder of a module under the package, or the module itself where it lies in none."""
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def name_of(path: pathlib.Path) -> str:
    """The dotted name of a module."""
    return '.'.join(path.relative_to(PACKAGE.parent).with_suffix('').parts).removesuffix(
        '.__init__'
    )


NAMES = {name_of(path) for path in MODULES}


def imported(path: pathlib.Path) -> set[str]:
    """The modules that a module imports, also inside functions, without those that only a type
    checker imports.
    """
    found, nodes = set(), [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING':
            continue
        nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = [f'{node.module}.{alias.name}' for alias in node.names]
            found |= {name if name in NAMES else node.module for name in names}
    return found - {name_of(path)}


def rooms(path: pathlib.Path) -> set[str]:
    """The folders and top modules of the package that a module imports from, but not its own."""
    own = {name for name in imported(path) if name.split('.')[0] == PACKAGE.name}
    return {(*name.split('.'), '__init__')[1] for name in own} - {room(path)}


def check_no_circle(arrows: dict[str, set[str]]) -> None:
    """Fails with the names along a circle if there is one."""
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f'a circle of imports: {" <- ".join(error.args[1])}')


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_imports_a_higher_floor(path):
    own = room(path)
    assert own in FLOOR, f'{own} has no floor; give it one in FLOORS'
    higher = {name for name in rooms(path) if FLOOR[name] > FLOOR[own]}
    assert not higher, f'floor {FLOOR[own]} imports {sorted(higher)}'


def test_no_circle_of_folders():
    arrows = {}
    for path in MODULES:
        arrows.setdefault(room(path), set()).update(rooms(path))
    check_no_circle(arrows)


def test_no_circle_of_modules():
    check_no_circle({name_of(path): imported(path) & NAMES for path in MODULES})


def test_the_package_imports_nothing_from_around_it():
    around = {'train', 'eval', 'configs', 'benchmarks', 'tests'}
    found = {name_of(p): n for p in MODULES for n in imported(p) if n.split('.')[0] in around}
    assert not found


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_are_short(path):
    assert len(path.read_text().splitlines()) <= LINES


def unknown_names(path: pathlib.Path) -> list[str]:
    """What a program reads from modules of the package that they do not have."""
    tree, modules, found = ast.parse(path.read_text()), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == PACKAGE.name:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if (whole := f'{node.module}.{alias.name}') in NAMES:
                    modules[alias.asname or alias.name] = importlib.import_module(whole)
                elif not hasattr(module, alias.name):
                    found.append(whole)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and not hasattr(module, node.attr):
                found.append(f'{node.value.id}.{node.attr}, line {node.lineno}')
    return found


@pytest.mark.parametrize('folder', ['benchmarks', 'configs'])
def test_programs_around_the_package_read_what_it_has(folder):
    programs = sorted((PACKAGE.parent / folder).rglob('*.py'))
    found = {path.name: names for path in programs if (names := unknown_names(path))}
    assert programs and not found


def test_names_that_a_module_lacks_are_found(tmp_path):
    path = tmp_path / 'program.py'
    lines = (
        'from posenc_jax.protocol import registry; from posenc_jax.core import nothing',
        'registry.entries, registry.no_such_name',
    )
    path.write_text('\n'.join(lines))
    assert unknown_names(path) == ['posenc_jax.core.nothing', 'registry.no_such_name, line 2']
