"""The public names: `dir`, `help` and `__all__` show what a package imports for its users."""

import ast
import importlib
import inspect
import pkgutil
import pydoc
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

import posenc_jax as pj
import posenc_jax.lab.functional as of_lab
from posenc_jax import moved
from posenc_jax.lab.catalogue.functions import WITHOUT as WITHOUT_FUNCTION
from posenc_jax.protocol import index, registry

ROOT = Path(pj.__file__).parent
PACKAGES = sorted(
    '.'.join(['posenc_jax', *path.parent.relative_to(ROOT).parts])
    for path in ROOT.rglob('__init__.py')
    if '__all__' in path.read_text(encoding='utf-8')
)
# They import nothing for their users.
WITHOUT = {'attention', 'base', 'lab', 'language', 'layer', 'protocol'}
# They import a part of their names, or all, when somebody reads one.
LAZY = {'posenc_jax', 'posenc_jax.methods', 'posenc_jax.mixers'}


def imported(package):
    tree = ast.parse(inspect.getsource(importlib.import_module(package)))
    froms = [node for node in tree.body if isinstance(node, ast.ImportFrom)]
    return {a.asname or a.name for node in froms for a in node.names}


def test_every_public_package_has_a_list():
    folders = {path.parent.name for path in ROOT.glob('*/__init__.py')}
    assert {name.split('.')[1] for name in PACKAGES if '.' in name} - WITHOUT == folders - WITHOUT


@pytest.mark.parametrize('package', PACKAGES)
def test_dir_shows_the_list_and_nothing_else(package):
    module = importlib.import_module(package)
    assert dir(module) == sorted(module.__all__) and len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name), name
    # `posenc_jax.language.catalog` defines its functions in the same file.
    if package not in {'posenc_jax.language.catalog', *LAZY}:
        assert set(module.__all__) == imported(package)


def test_the_documentation_of_the_functions_has_all_of_them():
    words = set(re.findall(r'\w+', pj.functional.__doc__))
    assert not set(pj.functional.__all__) - words
    assert 'alibi: alibi_bias, alibi_half, alibi_slopes' in pj.functional.__doc__


def test_a_renamed_function_says_its_name():
    with pytest.raises(ImportError, match='functional.t5_bias is called t5_rpe_bias$'):
        _ = pj.functional.t5_bias
    with pytest.raises(ImportError, match='random_ids is called randomized_pe_ids$'):
        from posenc_jax.functional import random_ids  # noqa: F401
    renamed = moved.RENAMED_FUNCTIONS
    assert set(renamed.values()) <= set(pj.functional.__all__)
    assert not set(renamed) & set(pj.functional.__all__)


KEYS = {}  # module below posenc_jax -> the methods that it registers
for (_, key), module in index.modules().items():
    KEYS.setdefault(module.removeprefix('posenc_jax.'), set()).add(key)
# Functions of a method that other methods use too, or that have the name of the mathematics.
OF_SEVERAL = {'rotate'}
OF_SEVERAL |= {'near_to_far_order', 'near_to_far_positions'}  # the name of the paper for the order


@pytest.mark.parametrize(
    'module, names', [pair for of in pj.functional.FAMILIES.values() for pair in of.items()]
)
def test_the_name_of_a_function_begins_with_the_key_of_its_method(module, names):
    for name in set(names.split()) - OF_SEVERAL if module in KEYS else ():
        assert any(
            f'{name}_'.startswith(f'{key}_') for key in KEYS[module] | {module.rpartition('.')[2]}
        ), name


def test_an_encoding_without_a_function_says_what_takes_its_place():
    """The table is as long as it must be: a new method has a function, or a line in it."""
    every = {key for _, key in index.modules()}
    names = {*pj.functional.__all__, *of_lab.__all__}
    owners = {
        max((key for key in every if f'{name}_'.startswith(f'{key}_')), key=len, default='')
        for name in names
    }
    kinds = {'encoding', 'frequencies', 'extension', 'coordinates'}
    keys = {key for kind, key in index.modules() if kind in kinds}
    assert set(WITHOUT_FUNCTION) == keys - owners and len(keys) > 150
    for text in WITHOUT_FUNCTION.values():
        assert set(re.findall(r'`(\w+)', text)) <= names


def test_families_hold_what_their_titles_say():
    """A module of rules, features, fields or mixers is in the family of its kind, and no other is;
    families of encodings hold those that open the door of their title.
    """
    kinds = {
        'Rules for rotary frequencies': 'frequencies',
        'Features of coordinates': 'coordinates',
        'Features of graphs': 'graph',
        'Networks of coordinates': 'field',
        'Layers in the place of attention': 'mixer',
    }
    doors = {
        'Rotations of queries and keys': {'project'},
        'Biases of logits by positions': {'logits'},
        'Logits of content and positions': {'logits'},
        'Vectors added to tokens': {'embed'},
        'Keys that a query sees': {'mask'},
        'Positions of tokens': {'place', 'mask'},
    }
    of = {}
    for entry in registry.entries():
        of.setdefault(entry.build.__module__.removeprefix('posenc_jax.'), []).append(entry)
    opens = lambda entry, door: (
        getattr(entry.build, door, None) is not getattr(pj.Encoding, door)
        and entry.kind == 'encoding'
    )
    for title, methods in pj.functional.FAMILIES.items():
        for module in methods.keys() & of.keys():
            found = {entry.kind for entry in of[module]}
            assert found & set(kinds.values()) == ({kinds[title]} if title in kinds else set())
            if title in doors:
                assert any(opens(e, d) for e in of[module] for d in doors[title]), (title, module)


@pytest.mark.parametrize(
    'module, name, hint',
    [
        (pj, 'Atention', "'Attention'"),
        (pj, 'mak', "'make'"),
        (pj.functional, 'rop', "'rope'"),
        (pj.functional, 'sinusoidal_tabel', "'sinusoidal_table'"),
    ],
)
def test_a_misspelt_name_has_a_proposal(module, name, hint):
    said = f"^module '{module.__name__}' has no attribute '{name}'; did you mean .*{hint}"
    with pytest.raises(AttributeError, match=said) as found:
        getattr(module, name)
    # Python itself proposes nothing more.
    assert traceback.format_exception_only(found.value)[0].count('did you mean') == 1
    assert 'Did you mean' not in traceback.format_exception_only(found.value)[0]


def test_a_name_like_no_other_is_short():
    with pytest.raises(
        AttributeError, match=r'valid: .* and \d+ more \(dir\(posenc_jax.functional'
    ):
        _ = pj.functional.qqqqq
    with pytest.raises(AttributeError) as found:
        getattr(pj, 'x' * 5000)
    assert len(str(found.value)) < 2000 and not hasattr(pj, '__wrapped__')


def test_a_module_that_is_not_imported_yet_says_so(monkeypatch):
    monkeypatch.delattr(pj, 'lab', raising=False)
    with pytest.raises(AttributeError, match='import posenc_jax.lab first$'):
        _ = pj.lab


def test_help_begins_with_what_to_call_first():
    text = pydoc.plain(pydoc.render_doc(pj))
    calls = re.findall(r'^ +pj\.(\w+)\(', text, re.M)[:6]
    assert calls == ['catalog', 'Attention', 'make', 'extend', 'choose', 'cite']
    assert text.index('pj.cite(') < 1200 and set(calls) <= set(dir(pj))


def test_linen_shows_its_classes():
    assert dir(pj.linen) == ['Attention', 'Bridge', 'EncodedAttention']


# Old module -> what has it now. Behind `RENAMED` are modules that are found by their files.
MOVED = {
    **moved.RENAMED,
    'catalog.cells': 'language.catalog.cells',
    'coordinates.geo.geo_sh': 'features.coordinates.geo.geo_sh',
    'generate': 'lab.cli.generate',
    'logits.alibi': 'methods.alibi',
    'model.transformer': 'lab.model.transformer',
    'run.lock': 'lab.files.lock',
}
# Name of an old package -> the package that has it now.
MOVED_NAMES = {
    'catalog.cite': 'language.catalog',
    'extension.extended_spec': 'methods.extend',
    'model.Transformer': 'lab.model',
    'model.TransformerConfig': 'lab.model',
    'tasks.formal.BucketSort': 'lab.tasks.copy',
}


@pytest.mark.parametrize('old', MOVED)
def test_an_old_module_says_where_it_is(old):
    # The modules of `tasks.copy` are one module, which the answer for this package names.
    asked = 'tasks.copy' if old.startswith('tasks.copy.') else old
    with pytest.raises(ImportError, match=f'^posenc_jax.{asked} has moved to') as found:
        importlib.import_module(f'posenc_jax.{old}')
    said = str(found.value).partition(' has moved to ')[2].split(' or ')
    new = [MOVED[old]] if isinstance(MOVED[old], str) else MOVED[old]
    assert said == [f'posenc_jax.{target}' for target in new]
    for target in said:
        pkgutil.resolve_name(target)


@pytest.mark.parametrize('old, new', MOVED_NAMES.items())
def test_an_old_package_says_which_package_has_a_name(old, new):
    package, _, name = old.rpartition('.')
    with pytest.raises(ImportError, match=f'^posenc_jax.{old} has moved to posenc_jax.{new}$'):
        getattr(importlib.import_module(f'posenc_jax.{package}'), name)
    assert hasattr(importlib.import_module(f'posenc_jax.{new}'), name)


def test_old_names_of_attributes_say_where_they_are():
    with pytest.raises(ImportError, match='graph has moved to posenc_jax.features.graphs'):
        _ = pj.graph
    with pytest.raises(ImportError, match='mixers.pieces has moved to posenc_jax.mixers.piecewise'):
        from posenc_jax.mixers import pieces  # noqa: F401
    with pytest.raises(ImportError, match='row_entropy has moved to posenc_jax.lab.functional'):
        from posenc_jax.functional import row_entropy  # noqa: F401
    assert set(moved.FUNCTIONS) <= set(of_lab.__all__)


def test_the_package_loads_no_method_and_little_else():
    code = 'import sys, posenc_jax; print(*(m for m in sys.modules if "posenc_jax" in m))'
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    found = done.stdout.split()
    assert len(found) <= 60 and not {'posenc_jax.lab', 'posenc_jax.methods.alibi'} & set(found)


LATER = """
import posenc_jax as pj
from posenc_jax.protocol import registry
try:
    @pj.register('alibi', kind='encoding')
    class Own(pj.Encoding):
        pass
except ValueError as error:
    print(error)
try:
    with registry.restored_after_errors():
        pj.make('kerple()', heads=2)
        raise KeyError
except KeyError:
    print(pj.make('kerple() | rope()', heads=2, head_dim=8))
"""


def test_methods_are_loaded_when_their_keys_are_asked_for():
    done = subprocess.run(
        [sys.executable, '-c', LATER], cwd=ROOT.parent, capture_output=True, text=True, check=True
    )
    refused, made = done.stdout.splitlines()
    assert "'alibi' is registered already, by posenc_jax.methods.alibi" in refused
    assert made == 'kerple() | rope()'
