"""Tests of the structure, which docs/architecture.md describes: the library does not import the
laboratory, nothing imports the evidence, a folder imports from the folders in front of it alone,
imports make no circle, and modules are short.
"""

import ast
import graphlib
import importlib
import pathlib
import re

import pytest

PACKAGE = pathlib.Path(__file__).parents[1] / 'posenc_jax'
# Each folder imports from itself and from those in front of it.
ORDER = (
    *('version', 'base', 'protocol', 'language'),
    *('attention', 'methods', 'features', 'fields', 'layer', 'mixers', 'testing'),
    *('moved', 'functional', 'linen', 'console', '__init__'),  # the end of the library
    *(
        'lab',
        'lab.files',
        'lab.model',
        'lab.pretrained',
        'lab.decoding',
        'lab.conversion',
        'lab.tasks',
    ),
    *('lab.config', 'lab.runs', 'lab.cluster', 'lab.evaluate', 'lab.train', 'lab.longrope_search'),
    *('lab.analyse', 'lab.functional', 'lab.cli', 'lab.catalogue'),
)
# The same for the modules and folders of attention/.
WITHIN_ATTENTION = (
    *('arguments', 'tiles', 'sweep', 'pruned', 'blocked', 'kernels', 'tile_sizes'),
    *('decisions', 'policy', 'library', 'buckets', 'distances', 'skewed', 'ring', 'split_cache'),
    'attend',
)
# What imports in a way that the syntax of an import does not show, and from where.
DYNAMIC = {
    '': 'the packages of the library',
    'protocol.lazy': 'the modules that `functional` and the packages of the library name',
    'protocol.index': 'the module that registers a key which somebody has asked for',
    'moved': 'the packages that may have a name of an old package',
    'lab.files.imports': 'modules of a user',
    'testing.__main__': 'modules of a user',
    'lab.config.config_file': 'a config, which is a Python file of a user',
    'lab.cluster.watcher': 'two modules of lab.files, which import the standard library alone',
    'lab.cluster.peers': 'starts the watcher',
    'console': 'the program of a command, which is in lab',
    'lab.pretrained.chat': 'starts `chat_process.py`, which imports jinja2',
    'lab.tasks.language.embedded': 'a text of the standard library',
}
# The same for the programs around the package.
DYNAMIC_AROUND = {
    'benchmarks/full_disk.py': 'train.py in a process of its own, whose disk is full',
    'benchmarks/fuzz/harness.py': 'the targets of benchmarks/fuzz, and one elsewhere by its name',
    'benchmarks/fuzz/runs.py': 'a module of a user in the folder of a try',
    'benchmarks/house.py': 'modules of the package, which have other names at another commit',
    'benchmarks/kill_resume.py': 'train.py in processes that are killed',
    'benchmarks/mutations/__main__.py': 'pytest',
    'benchmarks/mutations/in_one_process.py': 'the module of the package that a job changes',
    'benchmarks/pretrained.py': 'a program that loads a model in a process of its own',
    'benchmarks/short_runs.py': 'the package where it is not installed, and itself',
    'benchmarks/space.py': 'the config that somebody names',
    'evidence/claims/ledger.py': 'the experiments and sweeps of claims',
    'evidence/experiments/__main__.py': 'the experiment that somebody names',
    'evidence/experiments/runs.py': 'the experiment that somebody names',
    'website/hooks.py': 'the package where it is not installed',
}
MODULES = sorted(PACKAGE.rglob('*.py'))
LINES = 400


def folder_of(name: str) -> str:
    """The folder or top module in `ORDER` to which a module of the package belongs."""
    parts = name.split('.')[1:] or ['__init__']
    return '.'.join(parts[:2]) if parts[0] == 'lab' else parts[0]


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


def folders_of(path: pathlib.Path) -> set[str]:
    """The folders and top modules of the package that a module imports from, but not its own."""
    own = {name for name in imported(path) if name.split('.')[0] == PACKAGE.name}
    return set(map(folder_of, own)) - {folder_of(name_of(path))}


# The names by which a program imports or starts modules that its imports do not show.
HIDDEN = {
    *('importlib.import_module', '__import__', 'sys.path', 'sys.executable'),
    *('runpy.run_path', 'runpy.run_module', 'importlib.util.spec_from_file_location'),
}
PYTHON = re.compile(r'python[\d.]* -[mc]')


def loads(path: pathlib.Path) -> bool:
    """Whether a program imports, or starts, modules in a way that `imported` does not see. A name
    counts as what it was imported from: `from importlib import import_module as x` is seen.
    """
    nodes, whole = list(ast.walk(ast.parse(path.read_text()))), {}
    for node in nodes:
        if isinstance(node, ast.Import):
            whole |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom):
            whole |= {a.asname or a.name: f'{node.module}.{a.name}' for a in node.names}
    for node in nodes:
        if isinstance(node, ast.Attribute | ast.Name):
            first, dot, rest = ast.unparse(node).partition('.')
            if f'{whole.get(first, first)}{dot}{rest}' in HIDDEN:
                return True
        # The words of a command, as in `subprocess.run(['python', '-m', 'evidence.claims'])`.
        elif isinstance(node, ast.List | ast.Tuple):
            words = [str(word.value) for word in node.elts[:2] if isinstance(word, ast.Constant)]
            if PYTHON.fullmatch(' '.join(words)):
                return True
    return False


def check_no_circle(arrows: dict[str, set[str]]) -> None:
    """Fails with the names along a circle if there is one."""
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f'a circle of imports: {" <- ".join(error.args[1])}')


@pytest.mark.parametrize('path', MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_from_the_folders_in_front_of_it(path):
    own = folder_of(name_of(path))
    assert own in ORDER, f'{own} has no place; give it one in ORDER'
    behind = {name for name in folders_of(path) if ORDER.index(name) > ORDER.index(own)}
    assert not behind, f'{own} imports {sorted(behind)}'


def test_the_order_within_attention():
    folder = 'posenc_jax.attention.'
    place = lambda name: WITHIN_ATTENTION.index(name.removeprefix(folder).split('.')[0])
    for path in MODULES:
        if (own := name_of(path)).startswith(folder):
            read = {name for name in imported(path) if name.startswith(folder)}
            behind = {name for name in read if place(name) > place(own)}
            assert not behind, f'{own} imports {sorted(behind)}'


def test_only_known_modules_import_in_hidden_ways():
    found = {name_of(path).partition('.')[2] for path in MODULES if loads(path)}
    assert found == set(DYNAMIC)


def test_only_known_programs_around_the_package_import_in_hidden_ways():
    root = PACKAGE.parent
    programs = [root / 'train.py', root / 'eval.py']
    for folder in AROUND.keys() - {PACKAGE.name}:
        programs += (root / folder).rglob('*.py')
    found = {path.relative_to(root).as_posix() for path in programs if loads(path)}
    assert found == set(DYNAMIC_AROUND)


@pytest.mark.parametrize(
    'text',
    [
        "import importlib\nimportlib.import_module('evidence.claims')",
        "import importlib as i\ni.import_module('evidence.claims')",
        "from importlib import import_module as x\nx('evidence.claims')",
        "import runpy\nrunpy.run_module('evidence.claims')",
        "from sys import path as p\np.append('evidence')",
        "import subprocess\nsubprocess.run(['python', '-m', 'evidence.claims'])",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'evidence.claims'])",
    ],
)
def test_hidden_imports_are_found(text, tmp_path):
    path = tmp_path / 'program.py'
    path.write_text(text)
    assert loads(path)


def test_no_circle_of_folders():
    arrows = {}
    for path in MODULES:
        arrows.setdefault(folder_of(name_of(path)), set()).update(folders_of(path))
    check_no_circle(arrows)


def test_no_circle_of_modules():
    check_no_circle({name_of(path): imported(path) & NAMES for path in MODULES})


# What lies around the package -> what it imports beside the package.
AROUND = {
    'posenc_jax': set(),
    'configs': {'configs'},
    # The subjects of the contract suite, and random GGUF files, are made as in the tests.
    'benchmarks': {'benchmarks', 'configs', 'tests'},
    'evidence': {'evidence', 'benchmarks', 'configs'},
    'website': {'website', 'notebooks', 'evidence'},
    'notebooks': {'notebooks'},
}


@pytest.mark.parametrize('folder', AROUND)
def test_the_houses_around_the_package(folder):
    around = {'train', 'eval', 'tests', *AROUND} - {'posenc_jax'}
    for path in sorted((PACKAGE.parent / folder).rglob('*.py')):
        found = {name.split('.')[0] for name in imported(path)} & around
        assert found <= AROUND[folder], f'{path.name} imports {sorted(found)}'


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


@pytest.mark.parametrize('folder', ['benchmarks', 'configs', 'evidence'])
def test_programs_around_the_package_read_what_it_has(folder):
    programs = sorted((PACKAGE.parent / folder).rglob('*.py'))
    found = {path.name: names for path in programs if (names := unknown_names(path))}
    assert programs and not found


def test_names_that_a_module_lacks_are_found(tmp_path):
    path = tmp_path / 'program.py'
    lines = (
        'from posenc_jax.protocol import registry, nothing',
        'registry.entries, registry.no_such_name',
    )
    path.write_text('\n'.join(lines))
    assert unknown_names(path) == ['posenc_jax.protocol.nothing', 'registry.no_such_name, line 2']
