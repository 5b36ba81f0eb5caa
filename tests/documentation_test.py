"""Tests that the examples of the documentation run, and that public names have docstrings."""

import ast
import doctest
import importlib
import inspect
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

import posenc_jax
import posenc_jax.functional as functional
import posenc_jax.lab.functional as of_lab
from posenc_jax.lab.config import config_file
from posenc_jax.language.catalog import KINDS
from posenc_jax.protocol.registry import entries
from tests.smollm2 import needs_smollm2, smollm2

ROOT = Path(__file__).parents[1]
MODULES = sorted(
    m.name
    for m in pkgutil.walk_packages(posenc_jax.__path__, 'posenc_jax.')
    if not m.name.endswith('__main__')
)
NUMBER = re.compile(r'[-+]?\d+\.\d*(?:e[-+]?\d+)?')


class Checker(doctest.OutputChecker):
    """Compares decimal numbers to the digits that are shown, everything else as it stands."""

    def check_output(self, want, got, optionflags):
        if super().check_output(want, got, optionflags):
            return True
        if not super().check_output(NUMBER.sub('#', want), NUMBER.sub('#', got), optionflags):
            return False
        return all(
            _agrees(shown, float(value))
            for shown, value in zip(NUMBER.findall(want), NUMBER.findall(got))
        )


def _agrees(shown, value):
    mantissa, _, exponent = shown.partition('e')
    digits = len(mantissa.partition('.')[2])
    return abs(float(shown) - value) <= 0.5 * 10.0 ** (int(exponent or 0) - max(digits, 1)) * 1.001


def test_the_checker_compares_to_the_digits_shown():
    check = lambda want, got: Checker().check_output(want, got, 0)
    assert check('[0.34, 1.0]\n', '[0.3400000035762787, 1.0]\n') and check('1.0e-03\n', '0.001\n')
    for want, got in (
        ('0.34\n', '0.346\n'),
        ('[0.34]\n', '[0.34, 0.34]\n'),
        ('3\n', '4\n'),
        ('-0.5\n', '0.5\n'),
        ('a 0.1\n', 'b 0.1\n'),
    ):
        assert not check(want, got), (want, got)


def test_the_package_is_found():
    assert 'posenc_jax.methods.alibi' in MODULES and len(MODULES) > 40


FAST = ('posenc_jax.base.', 'posenc_jax.protocol.', 'posenc_jax.attention.')


@pytest.mark.full_where(condition=lambda name: not name.startswith(FAST))
@pytest.mark.parametrize('name', MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    assert module.__doc__, f'{name} has no docstring'
    runner = doctest.DocTestRunner(
        Checker(), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    )
    for example in doctest.DocTestFinder().find(module):
        runner.run(example)
    assert not runner.failures


METHODS = [entry for kind in KINDS for entry in entries(kind)]


@pytest.mark.parametrize('entry', METHODS, ids=lambda entry: f'{entry.kind}-{entry.key}')
def test_methods_show_an_example(entry):
    text = inspect.getsource(sys.modules[entry.build.__module__])
    assert '>>> ' in text, f'{entry.kind} {entry.key}: no docstring of its module shows an example'


@pytest.mark.parametrize('name', [*functional.__all__, *of_lab.__all__])
def test_functions_are_documented_pure_functions(name):
    function = getattr(functional if name in functional.__all__ else of_lab, name)
    assert callable(function) and not inspect.isclass(function)
    assert inspect.getdoc(function)
    where = sys.modules[function.__module__] if hasattr(function, '__module__') else None
    assert where is not None and where.__name__.startswith('posenc_jax.')


def test_functional_lists_each_name_once():
    assert functional.__all__ == sorted(set(functional.__all__))


def test_public_names_are_documented():
    for name, value in vars(posenc_jax).items():
        if callable(value) and not name.startswith('_'):
            assert inspect.getdoc(value), name


PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob('*.md'), *ROOT.glob('docs/*.md'), *ROOT.glob('docs/*/*.md'))
)
FOLDERS = r'docs|configs|tests|benchmarks|notebooks|posenc_jax|' + '|'.join(
    path.name for path in (ROOT / 'posenc_jax').iterdir() if path.is_dir()
)


@pytest.mark.parametrize('page', PAGES)
def test_files_that_are_named_exist(page):
    text = (ROOT / page).read_text(encoding='utf-8')
    named = set(re.findall(rf'`((?:{FOLDERS})/[\w/]*(?:/|\.(?:md|py|json)))`', text))
    for name in named:
        found = [root / name for root in (ROOT, ROOT / 'posenc_jax') if (root / name).exists()]
        assert found or 'root' in name, f'{page} names {name}'  # the method of CONTRIBUTING.md
    for link in re.findall(r'\]\(([^)#:]+)(?:#[^)]*)?\)', text):
        assert (ROOT / page).parent.joinpath(link).exists(), f'{page} links to {link}'


def blocks(page, language):
    """The code blocks of a page, without lines that only a notebook understands."""
    text = (ROOT / page).read_text(encoding='utf-8')
    found = re.findall(rf'```{language}\n(.*?)```', text, re.S)
    return [re.sub(r'^!.*$', '', block, flags=re.M) for block in found]


def test_the_readme_is_short():
    assert len((ROOT / 'README.md').read_text(encoding='utf-8').splitlines()) <= 150


@pytest.mark.full
def test_the_recipes_of_the_readme_run():
    *recipes, pretrained = blocks('README.md', 'python')
    scope = {}
    for recipe in recipes:
        exec(recipe.replace('4096', '256'), scope)
    assert scope['bias'].shape == (1, 8, 256, 256)
    assert 'load_pretrained' in pretrained


def check_packing_padding_and_a_cache(scope, call):
    """What an example says of its arrays, by calls on one document at a time."""
    x = scope['x']
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
    assert float(jnp.abs(scope['y_packed'] - scope['y']).max()) > 0.01
    near(scope['y'], call(x))
    for row, cut in ((0, 3), (1, 6)):
        for part in (slice(None, cut), slice(cut, None)):
            near(scope['y_packed'][row, part], call(x[row : row + 1, part])[0])
    near(scope['y_padded'][0, 3:], call(x[:1, 3:])[0])
    near(scope['y_padded'][1], scope['y'][1])
    near(scope['prompt'][0, 3:], scope['y_padded'][0, 3:7])
    near(scope['prompt'][1], scope['y_padded'][1, :7])
    near(scope['after'], scope['y_padded'][:, 7:])


def test_the_layer_of_the_readme_packs_pads_and_decodes():
    first, scope = blocks('README.md', 'python')[0], {}
    exec(first, scope)
    check_packing_padding_and_a_cache(scope, scope['layer'])


@pytest.mark.full
def test_the_rows_of_the_usage_page_are_served_as_texts_alone():
    scope = {}
    for code in blocks('docs/usage.md', 'python')[:2]:
        exec(code, scope)
    for text, found in zip(scope['texts'], scope['out']):
        np.testing.assert_allclose(jnp.stack(found), scope['layer'](text[None])[0], atol=2e-5)


def test_the_functions_page_rotates_as_the_modules_do():
    (code,), scope = blocks('docs/functions.md', 'python'), {}
    exec(code, scope)
    x, positions = scope['x'], scope['positions']
    rotated = lambda spec: posenc_jax.make(spec, head_dim=64, train_len=8).rotate(x, positions)
    np.testing.assert_allclose(scope['turned'], rotated('rope()'), atol=1e-6)
    long = rotated('rope(freqs=yarn(factor=4.0))')
    np.testing.assert_allclose(scope['longer'], long, atol=1e-6)
    assert scope['bias'].shape == (1, 4, 32, 32) and scope['bias'][0, 0, 3, 1] == -0.5


def test_the_first_command_of_the_readme_installs_the_package():
    first, second = (block.split('&&') for block in blocks('README.md', 'bash')[:2])
    assert [command.split() for command in first] == [
        ['pip', 'install', '-r', 'requirements.txt'],
        ['pip', 'install', '.'],
        ['python', 'train.py', '--config=configs/quickstart.py'],
    ]
    assert [command.split() for command in second] == [
        ['pip', 'install', '-r', 'requirements-dev.txt'],
        ['python', '-m', 'pytest'],
    ]


@pytest.mark.parametrize('page', PAGES)
def test_where_the_requirements_are_installed_the_package_is_too(page):
    for block in blocks(page, 'bash'):
        if '-r requirements.txt' in block:
            assert re.search(r'pip install (?:--python \S+ )?\.(?=\s|\')', block), block


@pytest.mark.full
@needs_smollm2
def test_the_recipe_for_a_public_checkpoint_runs():
    scope = {}
    exec(blocks('README.md', 'python')[-1].replace(Path(smollm2()).name, smollm2()), scope)
    assert scope['logits'].shape[-1] == 49152


@pytest.mark.full
def test_the_contexts_of_the_usage_page_are_joined(capsys):
    (code,) = [block for block in blocks('docs/usage.md', 'python') if 'ape_parallel' in block]
    exec(code, {})
    assert capsys.readouterr().out.strip() == '(1, 4)'


def test_the_layer_of_the_linen_page_packs_pads_and_decodes():
    first, scope = blocks('docs/linen.md', 'python')[0], {}
    exec(first, scope)
    layer, variables = scope['layer'], scope['variables']
    check_packing_padding_and_a_cache(scope, lambda x: layer.apply(variables, x))


def test_the_module_of_the_linen_page_decodes():
    scope = {}
    for code in blocks('docs/linen.md', 'python')[:2]:
        exec(code, scope)
    near = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
    near(scope['first'], scope['whole'][:, :5])
    near(jnp.concatenate(scope['rest'], axis=1), scope['whole'][:, 5:])
    assert sorted(scope['cache']['cache']) == ['Block_0', 'Block_1']


def test_the_linen_page_unboxes_and_shards(capsys):
    scope = {}
    for code in blocks('docs/linen.md', 'python'):
        exec(code, scope)
    specs, weights = scope['specs']['params'], scope['sharded']['params']
    assert specs['encoding']['parts']['1']['table'] == P(None, 'heads')
    assert weights['encoding']['parts']['1']['table'].sharding.spec == P(None, 'model')
    assert weights['projections']['w_q'].sharding.spec == P(None, 'model', None)
    np.testing.assert_allclose(
        scope['y_sharded'], scope['layer'].apply(scope['variables'], scope['x']), atol=2e-5
    )
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == [
        'encoding/parts/1/table',
        *(f'projections/{name}' for name in ('w_k', 'w_out', 'w_q', 'w_v')),
    ]
    assert '(2, 8, 4, 16)' in printed


@pytest.mark.parametrize('page', PAGES)
def test_training_commands_name_fields_that_exist(page):
    """Every `train.py` command of a page is read as train.py reads it, up to its placeholders."""
    for block in blocks(page, 'bash'):
        for line in re.sub(r'\\\n', ' ', block).splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # a quoted command of several lines
                words = line.split()
            while 'train.py' in words:
                _, words = words[: words.index('train.py')], words[words.index('train.py') + 1 :]
                fields = [word for word in words if word.startswith('--config.')]
                (path,) = [w.removeprefix('--config=') for w in words if w.startswith('--config=')]
                config_file.read(str(ROOT / path), fields)


@pytest.mark.full
def test_the_commands_for_an_encoding_of_ones_own_work(tmp_path):
    """The commands of CONTRIBUTING.md on its example, in a folder of its own, at small sizes."""
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    (code,) = [b for b in blocks('CONTRIBUTING.md', 'python') if '@register' in b]
    (commands,) = [b for b in blocks('CONTRIBUTING.md', 'bash') if '--import' in b]
    assert 'save it as `root.py`' in text
    (tmp_path / 'root.py').write_text(code)
    for name in ('train.py', 'eval.py', 'configs'):
        (tmp_path / name).symlink_to(ROOT / name)
    small = dict(steps=2, warmup=0, batch=2, length=16, eval_every=0)
    fields = [f'--config.train.{name}={value}' for name, value in small.items()]
    fields += ['--config.eval.at_end=False', '--config.model.layers=1', '--config.model.width=40']
    few = [
        '--config.eval.lengths=16',
        '--config.eval.stride=8',
        '--config.eval.tokens=64',
        '--config.eval.protocols=sliding',
    ]
    more = {'train.py': fields, 'eval.py': few, 'posenc_jax.lab.cli.generate': ['--tokens=2']}
    for line in commands.replace('\\\n', ' ').strip().splitlines():
        words = shlex.split(line)
        program = words[2] if words[1] == '-m' else words[1]
        if program == 'posenc_jax.lab.cli.generate':
            (tmp_path / 'root.py').rename(tmp_path / 'moved.txt')
        if program == 'posenc_jax.lab.cli.gallery':
            (tmp_path / 'moved.txt').rename(tmp_path / 'root.py')
        done = subprocess.run(
            [sys.executable, *words[1:], *more.get(program, [])],
            cwd=tmp_path,
            env={**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': ''},  # one device
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, (line, done.stderr[-2000:])
        if program == 'posenc_jax.testing':
            assert done.stdout.startswith('root() opens logits: 2') and 'laws hold' in done.stdout
    assert list((tmp_path / 'runs' / 'root' / 'imports').glob('root-*.py'))


def test_the_made_up_method_of_the_contributing_guide_works(monkeypatch):
    from posenc_jax.protocol import registry

    registry.entries()  # which loads all methods
    monkeypatch.setattr(registry, '_ENTRIES', dict(registry._ENTRIES))
    text = (ROOT / 'CONTRIBUTING.md').read_text(encoding='utf-8')
    code = next(
        block for block in re.findall(r'```python\n(.*?)```', text, re.S) if '@register' in block
    )
    imported = [
        a.name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.ImportFrom)
        for a in node.names
        if node.module.startswith('posenc_jax')
    ]
    assert len(imported) > 5 and set(imported) <= set(posenc_jax.__all__)
    scope = {'__name__': 'root'}
    exec(code, scope)
    built = posenc_jax.make('root(scale=2.0)', heads=2, causal=True)
    assert built.parts[0].card.key == 'root'
    tok = posenc_jax.Tokens.of(length=5)
    s, _ = built.parts[0].logits(jax.numpy.zeros((1, 2, 5, 5)), None, None, tok, tok, None, ())
    assert s[0, 1, 4, 0] == -2.0  # scale 2, second head, distance 4
    docstring = ' '.join(scope['Root'].__doc__.split())
    for needed in (
        'Differs from ',
        'Example:',
        '>>> ',
        'Reference: ',
        built.parts[0].card.arxiv,
    ):  # as the contract asks
        assert needed in docstring, needed
    runner = doctest.DocTestRunner(Checker())
    for name in ('Root', 'root_bias'):
        for example in doctest.DocTestFinder().find(scope[name], name, module=False, globs=scope):
            runner.run(example)
    assert runner.tries >= 2 and not runner.failures
