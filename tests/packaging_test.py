"""Tests of what pip installs: the lists in `requirements/`, the commands, and the files of a wheel.
`.ci/wheel` builds one and tries it.
"""

import ast
import importlib
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

from posenc_jax import __version__, console
from posenc_jax.base import extras
from posenc_jax.base.programs import program
from posenc_jax.lab.files import paths

ROOT = pathlib.Path(__file__).parents[1]
LISTS = {path.stem: path for path in sorted((ROOT / 'requirements').glob('*.txt'))}
SETTINGS = tomllib.loads((ROOT / 'pyproject.toml').read_text())
EXTRAS = {'train', 'pretrained', 'tfds', 'images', 'gcs', 's3', 'dev', 'docs'}


def lines(path: pathlib.Path) -> list[str]:
    """The lines of a list without its comments."""
    found = [line.split('#')[0].strip() for line in path.read_text().splitlines()]
    return [line for line in found if line]


def read(path: pathlib.Path) -> set[pathlib.Path]:
    """The lists that a file of pip's reads, itself left out."""
    names = [line.removeprefix('-r ') for line in lines(path) if line.startswith('-r ')]
    direct = {(path.parent / name).resolve() for name in names}
    return direct.union(*map(read, direct))


def test_the_package_and_its_extras_read_the_lists():
    dynamic = SETTINGS['tool']['setuptools']['dynamic']
    extras = dynamic['optional-dependencies']
    assert dynamic['dependencies'] == {'file': 'requirements/core.txt'}
    assert extras == {name: {'file': f'requirements/{name}.txt'} for name in EXTRAS}
    assert set(SETTINGS['project']['dynamic']) >= {'dependencies', 'optional-dependencies'}
    assert not {'dependencies', 'optional-dependencies'} & SETTINGS['project'].keys()


def test_the_files_of_the_readme_hold_no_bounds_of_their_own():
    own, dev = ROOT / 'requirements.txt', ROOT / 'requirements-dev.txt'
    assert read(own) == {LISTS[name] for name in ('core', 'train', 'pretrained', 'tfds', 'images')}
    assert read(dev) == {own, LISTS['dev'], *read(own)}
    assert all(line.startswith('-r ') for path in (own, dev) for line in lines(path))


def test_a_package_has_the_same_bounds_wherever_it_is_listed():
    bounds = {}
    for path in LISTS.values():
        for line in lines(path):  # setuptools reads no options, so a list refers to no other
            name, bound = re.fullmatch(r'([\w.-]+(?:\[\w+\])?)([<>=][^;]*)', line).groups()
            assert bounds.setdefault(name, bound) == bound, f'{path.name}: {line}'


def test_the_package_says_that_it_is_typed():
    assert (ROOT / 'posenc_jax' / 'py.typed').is_file()
    assert SETTINGS['tool']['setuptools']['package-data']['posenc_jax'] == [
        'py.typed',
        'papers.bib',
        'choosing.toml',
        'costs.csv',
        'verdicts.csv',
        'attention/kernels/compiled.csv',
    ]


def names(requirements: list[str]) -> set[str]:
    """The names of the distributions in a list, without bounds and extras."""
    return {re.match(r'[\w.-]+', line).group().lower().replace('_', '-') for line in requirements}


def test_the_table_of_extras_is_that_of_the_lists():
    """Each library of an extra has its module in the table, or is one that Flax brings."""
    flax, orbax = map(importlib.metadata.requires, ('flax', 'orbax-checkpoint'))
    brought = names([line for line in (*flax, *orbax) if 'extra ==' not in line])
    listed = {extra: names(lines(LISTS[extra])) for extra in extras.EXTRAS}
    assert {extra: names(table) for extra, table in extras.EXTRAS.items()} == {
        extra: found - brought for extra, found in listed.items()
    }


def test_a_tag_of_this_commit_names_the_version():
    asked = ['git', '-C', str(ROOT), 'tag', '--points-at', 'HEAD', 'v*']
    found = subprocess.run(asked, capture_output=True, text=True).stdout.split()
    assert found in ([], [f'v{__version__}'])


def test_the_packages_of_a_bucket_are_those_of_its_extra():
    for extra, packages in paths.PACKAGES.values():
        assert names(lines(LISTS[extra])) == packages.keys()


def explained(node: ast.AST) -> bool:
    return isinstance(node, ast.With) and ast.unparse(node.items[0]) == 'extras.explained()'


def unexplained(path: pathlib.Path) -> set[str]:
    """The modules that a file imports outside of `extras.explained()`."""
    nodes, found = [ast.parse(path.read_text())], set()
    while nodes:
        node = nodes.pop()
        for_types = isinstance(node, ast.If) and ast.unparse(node.test) == 'TYPE_CHECKING'
        if explained(node) or for_types:
            continue
        nodes.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            found |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or '').split('.')[0])
    return found


def test_imports_of_an_extra_are_explained():
    """`posenc_jax.lab` checks the extra `train` as a whole, and `chat.py` that of its script."""
    modules = {module for table in extras.EXTRAS.values() for module in table.values()}
    checked, found = set(extras.EXTRAS['train'].values()), {}
    files = set((ROOT / 'posenc_jax').rglob('*.py'))
    for path in files - {ROOT / 'posenc_jax/lab/pretrained/chat_process.py'}:
        wrong = unexplained(path) & modules
        if wrong := wrong - checked if 'lab' in path.relative_to(ROOT).parts else wrong:
            found[path] = wrong
    assert not found
    assert 'tokenizers' in unexplained(ROOT / 'tests/lab/pretrained/chat_test.py')


# What the library imports; SciPy comes with JAX, and optax with Flax.
LIBRARY = {'jax', 'jaxlib', 'flax', 'numpy', 'jaxtyping', 'scipy', 'optax'}


def test_the_library_needs_nothing_but_jax_flax_numpy_and_jaxtyping():
    assert names(lines(LISTS['core'])) == LIBRARY - {'jaxlib', 'scipy', 'optax'}
    for path in (ROOT / 'posenc_jax').rglob('*.py'):
        outside = unexplained(path) - sys.stdlib_module_names - {'posenc_jax', ''}
        assert 'lab' in path.relative_to(ROOT).parts or outside <= LIBRARY, path


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, 'grain', None)
    with pytest.raises(ModuleNotFoundError) as caught:
        extras.need('train')
    assert str(caught.value) == "grain is not installed; pip install 'posenc_jax[train]'"
    with pytest.raises(ModuleNotFoundError, match=r'^grain is not .*\[train\]'), extras.explained():
        import grain  # noqa: F401
    with pytest.raises(ModuleNotFoundError, match="^No module named 'no_such'"), extras.explained():
        import no_such  # noqa: F401


def test_commands_start_their_programs(monkeypatch):
    """Every command calls `main()` of the module that is the program."""
    started = []

    class Program:
        @staticmethod
        def main():
            started.append(module)
            return 3

    for name, place in SETTINGS['project']['scripts'].items():
        assert name.startswith('posenc-') and place.startswith(f'{console.__name__}:')
        with monkeypatch.context() as patch:
            asked = []
            patch.setattr(importlib, 'import_module', lambda of: asked.append(of) or Program)
            module = name
            assert getattr(console, place.partition(':')[2])() == 3
        source = pathlib.Path(importlib.util.find_spec(*asked).origin)
        (main,) = [
            n for n in ast.parse(source.read_text()).body if getattr(n, 'name', '') == 'main'
        ]
        assert len(main.args.defaults) == len(main.args.args)  # the console gives no arguments
        assert name.removeprefix('posenc-')[:6] in asked[0]
    assert started == list(SETTINGS['project']['scripts'])


@pytest.mark.parametrize('name, said', [('posenc-train', 'posenc-train'), ('pytest', 'train.py')])
def test_a_command_names_the_missing_extra(name, said, monkeypatch, capsys):
    def missing(module):
        raise ModuleNotFoundError(f'No module named {module}', name='matplotlib.figure')

    monkeypatch.setattr(importlib, 'import_module', missing)
    monkeypatch.setattr(sys, 'argv', [f'/bin/{name}'])
    assert program('train.py') == said and console.train() == 2
    line = f"{said}: matplotlib is not installed; pip install 'posenc_jax[train]'\n"
    assert capsys.readouterr().err == line


def test_an_error_of_another_kind_is_not_hidden(monkeypatch):
    def missing(module):
        raise ModuleNotFoundError(name='own_module')

    monkeypatch.setattr(importlib, 'import_module', missing)
    with pytest.raises(ModuleNotFoundError):
        console.train()


def test_the_changelog_knows_the_version():
    assert f'\n## [{__version__}] - ' in (ROOT / 'CHANGELOG.md').read_text(encoding='utf-8')


@pytest.mark.full
def test_the_files_of_a_wheel():
    """What setuptools would pack, by its own reading of setup.py and pyproject.toml."""
    pytest.importorskip('setuptools', '77')
    code = (
        'import json; from setuptools import Distribution; import distutils.core as core\n'
        'made = core.run_setup("setup.py", stop_after="config").get_command_obj("build_py")\n'
        'made.ensure_finalized(); print("\\n" + json.dumps(made.get_outputs(False)))'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    outputs = json.loads(done.stdout.splitlines()[-1])
    found = {path.partition('posenc_jax/')[2] for path in outputs}
    package = [p.relative_to(ROOT / 'posenc_jax') for p in (ROOT / 'posenc_jax').rglob('*.py')]
    configs = [p.relative_to(ROOT) for p in (ROOT / 'configs').rglob('*.py')]
    notebooks = [p.relative_to(ROOT) for p in (ROOT / 'notebooks').glob('*.ipynb')]
    assert found == {
        *(path.as_posix() for path in package),
        *(f'installed/{path.as_posix()}' for path in (*configs, *notebooks)),
        'py.typed',
        'papers.bib',
        'choosing.toml',
        'costs.csv',
        'verdicts.csv',
        'attention/kernels/compiled.csv',
    }
