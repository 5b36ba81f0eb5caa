"""The public names: `dir`, `help` and `__all__` show what a package imports for its users."""

import ast
import importlib
import inspect
import pydoc
import re
from pathlib import Path

import pytest

import posenc_jax as pj

ROOT = Path(pj.__file__).parent
PACKAGES = sorted(
    '.'.join(['posenc_jax', *path.parent.relative_to(ROOT).parts])
    for path in ROOT.rglob('__init__.py')
    if '__all__' in path.read_text(encoding='utf-8')
)
# They import nothing for their users.
WITHOUT = {'commands', 'core', 'evaluation', 'run', 'search', 'training'}


def imported(package):
    tree = ast.parse(inspect.getsource(importlib.import_module(package)))
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {a.asname or a.name for node in froms for a in node.names}


def test_every_public_package_has_a_list():
    folders = {path.parent.name for path in ROOT.glob('*/__init__.py')}
    assert {name.split('.')[1] for name in PACKAGES if '.' in name} == folders - WITHOUT


@pytest.mark.parametrize('package', PACKAGES)
def test_dir_shows_the_list_and_nothing_else(package):
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__) and len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name
    if package != 'posenc_jax.catalog':  # which defines its functions in the same file
        assert set(module.__all__) == imported(package)


def test_help_begins_with_what_to_call_first():
    text = pydoc.plain(pydoc.render_doc(pj))
    calls = re.findall(r'^ +pj\.(\w+)\(', text, re.M)[:5]
    assert calls == ['catalog', 'Attention', 'make', 'extend', 'cite']
    assert text.index('pj.cite(') < 1200 and set(calls) <= set(dir(pj))


def test_linen_shows_its_classes():
    assert dir(pj.linen) == ['Attention', 'Bridge']
