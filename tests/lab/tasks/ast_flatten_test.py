"""Flat syntax trees: the mapping by hand, exact round trips of trees and of Python, the task, and
sequences that are no tree.
"""

import ast

import numpy as np
import pytest

from posenc_jax.lab.tasks.language import FlatTrees, Language
from posenc_jax.lab.tasks.language.ast_flatten import (
    ast_flatten,
    ast_unflatten,
    flatten,
    python_syntax,
    python_tree,
    unflatten,
)
from posenc_jax.lab.tasks.language.embedded import EmbeddedCorpus
from tests.golden_files import golden

GOLDEN = golden('ast_flatten')['values']
# What a leaf may be: names, literals of all kinds, fields that are absent, numbers of fields.
SOURCE = '''
from .. import a as b, c
from d import *
async def f(x, /, y: int = -1, *z, w=None, **rest) -> 'AST#x#Left':
    """A text\nwith lines, \\r, \u2028 and \\ud800."""
    global g
    return {**x, 1: ..., 'None': None, b'1': 1.5e300, u'u': 1e999, True: 2j, 0x10: 1e999j}[::2]
match f:
    case [None, {'k': -1.5, **rest}, C(x=_) as q, *_] if not f"{x!r:>{w}} None": lambda: (yield)
x: int
(y): int = 10 ** 20, [i async for i in j], 'inf', "it's", '"', 0, 0.0, 1_000
'''


def as_tree(value):
    """A tree of JSON, where a node is a list of its type and its children."""
    return value if isinstance(value, str) else (value[0], [as_tree(v) for v in value[1]])


def same(source):
    tokens = ast_flatten(source)
    assert not any(set('\n\r\u2028') & set(token) for token in tokens)
    return ast.dump(ast_unflatten(tokens)) == ast.dump(ast.parse(source))


# The mapping.


def test_golden_tree():
    tree, tokens = as_tree(GOLDEN['tree']), GOLDEN['tokens'].split()
    assert flatten(tree) == tokens and unflatten(tokens) == tree
    assert len(tokens) == GOLDEN['leaves'] + 2 * GOLDEN['nodes']


def random_tree(rng, depth):
    if depth == 0 or rng.random() < 0.3:
        return str(rng.choice(['x', '(', 'a b', '#', 'AST#', 'AST#x', "'AST#x#Left'", '']))
    children = [random_tree(rng, depth - 1) for _ in range(rng.integers(0, 4))]
    return str(rng.choice(['node', 'AST', 'Left'])), children


def test_random_trees_come_back():
    rng = np.random.default_rng(0)
    trees = [random_tree(rng, 4) for _ in range(100)]
    assert [unflatten(flatten(tree)) for tree in trees] == trees
    assert len({tuple(flatten(tree)) for tree in trees}) == len({str(tree) for tree in trees})


def test_deep_trees_come_back():
    tree = 'x'
    for _ in range(20_000):
        tree = ('node', [tree])
    tokens = flatten(tree)
    assert len(tokens) == 40_001 and flatten(unflatten(tokens)) == tokens


# Python.


def test_every_kind_of_leaf_comes_back():
    assert same(SOURCE)
    assert same('') and same('pass')
    encoded = '# coding: latin-1\nx = "é"'.encode('latin-1')
    assert same(encoded) and "'é'" in ast_flatten(encoded)


def test_expressions_come_back_too():
    syntax = ast.parse('a if b else c', mode='eval')
    assert ast.dump(python_syntax(python_tree(syntax))) == ast.dump(syntax)
    scope, module = {}, ast_unflatten(ast_flatten('x = 6 * 7'))
    exec(compile(ast.fix_missing_locations(module), '', 'exec'), scope)
    assert scope['x'] == 42


@pytest.mark.parametrize('split', ['test', pytest.param('train', marks=pytest.mark.full)])
def test_the_standard_library_comes_back(split):
    documents = EmbeddedCorpus('stdlib_code').documents(split)
    # The smaller half in the fast tests; one file in eight of the training split.
    chosen = sorted(documents, key=len)[:15] if split == 'test' else documents[::8]
    assert len(chosen) >= 15 and all(map(same, chosen))


def test_brackets_name_the_place_of_a_token():
    """Two modules with the same tokens in the same order, and different trees."""
    one, other = ast_flatten('f(a)(b)'), ast_flatten('f(a, b)')
    leaves = lambda tokens: [token for token in tokens if not token.startswith('AST#')]
    assert leaves(one) == leaves(other) == ['f', 'a', 'b'] and one != other


# The task.


@pytest.fixture
def modules(tmp_path):
    for number in range(40):
        (tmp_path / f'{number}.py').write_text(f'def f(x):\n    return x + {number}\n')
    return tmp_path


def test_the_task_is_a_language_of_flat_trees(modules):
    pattern = f'text:{modules}/*.py'
    task, plain = FlatTrees(pattern), Language(pattern)
    assert len(task.documents('train')) == len(plain.documents('train'))
    for ids, source in zip(task.documents('train'), plain.documents('train')):
        tokens = task.decode(ids[1:]).split('\n')
        expected = ast.dump(ast.parse(plain.decode(source[1:])))
        assert ast.dump(ast_unflatten(tokens)) == expected
    batch = FlatTrees(pattern, packing='documents').dataset(length=64, batch_size=2, seed=0)[0]
    assert batch['segment'].shape == batch['tokens'].shape == (2, 64)
    leaves = FlatTrees(pattern, nodes=False).documents('train')[0]
    assert task.decode(leaves[1:]).split('\n')[:2] == ['f', 'x']


def test_a_document_that_does_not_parse_is_named(tmp_path):
    (tmp_path / 'one.py').write_text('def broken(:\n' + 'x = 1\n' * 40)
    with pytest.raises(ValueError, match=r"whole modules of Python: the document 'def broken\(:'"):
        FlatTrees(f'text:{tmp_path}/*.py').documents('train')


# Sequences that are no tree, and trees that are no sequence or no Python.

REFUSED = [  # function, what it gets, and what the message says
    (unflatten, [], 'at least one token, got none'),
    (
        unflatten,
        'AST#a#Left x'.split(),
        "node 'a' that was opened at token 0 is not closed by the end, token 2",
    ),
    (
        unflatten,
        'AST#a#Left AST#b#Left AST#a#Right'.split(),
        "'AST#a#Right' at token 2 closes the node 'b'.*1; expected 'AST#b#Right'",
    ),
    (unflatten, ['AST#a#Right'], "'AST#a#Right' at token 0 closes a node that was not opened"),
    (unflatten, 'AST#a#Left AST#a#Right x'.split(), "ends at token 1, and 'x' follows at token 2"),
    (unflatten, 'x AST#a#Right'.split(), "ends at token 0, and 'AST#a#Right' follows at token 1"),
    (flatten, ('a', ['AST#b#Left']), "the leaf 'AST#b#Left' reads like a bracket"),
    (flatten, ('a#b', []), "a name without '#', got 'a#b'"),
    (flatten, ('', ['x']), "a name without '#', got ''"),
    (python_syntax, ('Nam', ['x', ('Load', [])]), "'Nam' is no node.*did you mean .*'Name'"),
    (python_syntax, ('parse', []), "'parse' is no node"),
    (python_syntax, ('Name', ['x']), 'Name has the fields id, ctx, got 1 children'),
    (python_syntax, 'x', "root of a syntax tree is a node such as Module, got 'x'"),
    (python_syntax, ('list', []), "root of a syntax tree is a node such as Module, got 'list'"),
    (python_syntax, ('Load', ['x']), 'Load has the fields none, got 1 children'),
    (python_syntax, ('Constant', ['f(x)', 'None']), r"a Constant holds a literal, got 'f\(x\)'"),
]


@pytest.mark.parametrize('function, argument, message', REFUSED)
def test_what_would_not_come_back_is_refused(function, argument, message):
    with pytest.raises(ValueError, match=message):
        function(argument)
