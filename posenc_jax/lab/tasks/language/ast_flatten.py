"""Syntax trees as token sequences that can be read back: the one-to-one mapping of UniXcoder."""

import ast
import dataclasses
import functools
import re
from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Int

from posenc_jax.lab.tasks.language.language import Language
from posenc_jax.protocol.errors import nearest, quoted
from posenc_jax.protocol.registry import Card, Promises, register

# A leaf is its token, a node is (type, children).
Tree = str | tuple[str, Sequence['Tree']]

_BRACKET = re.compile(r'AST#([^#]+)#(Left|Right)')
_LIST = 'list'  # the type of the nodes that hold the items of a field, which no class of `ast` has
_SINGLE = {'None': None, 'True': True, 'False': False}


def flatten(tree: Tree) -> list[str]:
    """`F(leaf)` is its token; `F(node)` is `AST#type#Left`, F of each child, `AST#type#Right`.

    The length is the number of leaves and twice that of the other nodes.

    Raises:
      ValueError: a leaf that reads like a bracket, or a type that is empty or contains '#': the
        sequence could not be read back.
    """
    tokens, waiting = [], [(tree, False)]
    while waiting:
        item, closes = waiting.pop()
        if isinstance(item, str):
            if not closes and _BRACKET.fullmatch(item):
                raise ValueError(
                    f'ast_flatten: the leaf {quoted(item)} reads like a bracket, so the sequence '
                    'could not be read back'
                )
            tokens.append(item)
            continue
        name, children = item
        if not name or '#' in name:
            raise ValueError(
                f"ast_flatten: the type of a node is a name without '#', got {quoted(name)}"
            )
        tokens.append(f'AST#{name}#Left')
        waiting.append((f'AST#{name}#Right', True))
        waiting += [(child, False) for child in reversed(children)]
    return tokens


def unflatten(tokens: Sequence[str]) -> Tree:
    """The tree of a flat sequence: the inverse of `flatten`, with lists of children.

    Raises:
      ValueError: brackets that do not nest, with their names and places, or no single tree.
    """
    top: list[Tree] = []
    opened: list[tuple[str, int, list[Tree]]] = []
    for place, token in enumerate(tokens):
        if top and not opened:
            raise ValueError(
                f'ast_flatten: the tree ends at token {place - 1}, and {quoted(token)} follows at '
                f'token {place}'
            )
        inner = opened[-1][2] if opened else top
        bracket = _BRACKET.fullmatch(token)
        if bracket is None:
            inner.append(token)
        elif bracket[2] == 'Left':
            opened.append((bracket[1], place, []))
        else:
            if not opened:
                raise ValueError(
                    f'ast_flatten: {quoted(token)} at token {place} closes a node that was not '
                    'opened'
                )
            name, start, children = opened.pop()
            if name != bracket[1]:
                raise ValueError(
                    f'ast_flatten: {quoted(token)} at token {place} closes the node {quoted(name)} '
                    f"that was opened at token {start}; expected 'AST#{name}#Right'"
                )
            (opened[-1][2] if opened else top).append((name, children))
    if opened:
        name, start, _ = opened[-1]
        raise ValueError(
            f'ast_flatten: the node {quoted(name)} that was opened at token {start} is not closed '
            f'by the end, token {len(tokens)}'
        )
    if not top:
        raise ValueError('ast_flatten: a tree has at least one token, got none')
    return top[0]


def python_tree(syntax: ast.AST) -> Tree:
    """The tree of a syntax tree of Python: a node for each of its nodes, its fields in order.

    A field that holds several values is a node 'list'. Names are leaves as they stand, and so are
    numbers and None; the value of a `Constant` is a leaf with its literal. Lines and columns are
    left out.
    """

    def convert(value, literal=False):
        if isinstance(value, ast.AST):
            literal = isinstance(value, ast.Constant)
            return type(value).__name__, [
                convert(getattr(value, name), literal and name == 'value') for name in value._fields
            ]
        if isinstance(value, list):
            return _LIST, [convert(item) for item in value]
        if isinstance(value, (float, complex)):
            return repr(value).replace('inf', '1e999')  # as the source may have written it
        if value is ...:
            return '...'
        return repr(value) if literal or not isinstance(value, str) else value

    return convert(syntax)


def python_syntax(tree: Tree) -> ast.AST:
    """The syntax tree of Python of a tree: the inverse of `python_tree`.

    `ast.unparse(ast.fix_missing_locations(...))` writes its source.

    Raises:
      ValueError: a type that is no node of Python's syntax, with the nearest one; another number
        of children than the node has fields; a value that is no literal.
    """

    def convert(tree, literal=False):
        if isinstance(tree, str):
            if literal:
                try:
                    return ast.literal_eval(tree)
                except (ValueError, SyntaxError):
                    raise ValueError(
                        f'ast_flatten: a Constant holds a literal, got {quoted(tree)}'
                    ) from None
            if tree in _SINGLE:
                return _SINGLE[tree]
            return int(tree) if re.fullmatch(r'-?\d+', tree) else tree
        name, children = tree
        if name == _LIST:
            return [convert(child) for child in children]
        kind = getattr(ast, name, None)
        if not isinstance(kind, type) or not issubclass(kind, ast.AST):
            nodes = (each for each in vars(ast).values() if isinstance(each, type))
            known = [each.__name__ for each in nodes if issubclass(each, ast.AST)]
            raise ValueError(
                f'ast_flatten: {quoted(name)} is no node of the syntax of Python; '
                f'{nearest(name, known)}'
            )
        if len(children) != len(kind._fields):
            raise ValueError(
                f'ast_flatten: {name} has the fields {", ".join(kind._fields) or "none"}, got '
                f'{len(children)} children'
            )
        literal = kind is ast.Constant
        return kind(
            **{
                field: convert(child, literal and field == 'value')
                for field, child in zip(kind._fields, children)
            }
        )

    syntax = convert(tree)
    if not isinstance(syntax, ast.AST):
        raise ValueError(
            'ast_flatten: the root of a syntax tree is a node such as Module, got '
            f'{quoted(tree if isinstance(tree, str) else tree[0])}'
        )
    return syntax


@register(
    'ast_flatten',
    kind='analysis',
    card=Card(
        name='UniXcoder, flat syntax trees',
        title='UniXcoder: Unified Cross-Modal Pre-training for Code Representation',
        arxiv='2203.03850',
        door='none',
        equation='F(leaf) = its token; F(node) = AST#type#Left, F(child_1) .. F(child_k), '
        'AST#type#Right',
        source='microsoft/CodeBERT (checkpoints; the mapping from the paper)',
        authors='Guo, Daya and Lu, Shuai and Duan, Nan and Wang, Yanlin and Zhou, Ming and Yin, '
        'Jian',
        year=2022,
        example='ast_flatten(source)',
        use_when='You have Python source and want its syntax tree as tokens.',
        promises=Promises(sweep_free=False, blockwise=False),
    ),
)
def ast_flatten(source: str | bytes) -> list[str]:
    """The syntax tree of Python source as a flat sequence of tokens, which can be read back.

    A node becomes two tokens around those of its children, so the sequence keeps the whole tree,
    and ordinary positions of its tokens serve. `ast_unflatten` inverts it. The task
    `ast_flatten()` is a language of such sequences. Differs from the paper: the trees are those of
    Python's own `ast` instead of tree-sitter's, whose leaves include punctuation. Nodes with one
    child are kept, since the mapping could not be inverted without them.

    Args:
      source: text of a module; bytes may declare their encoding.

    Raises:
      SyntaxError: source that does not parse.

    Reference: Guo, Lu, Duan, Wang, Zhou, Yin, arXiv 2203.03850.

    Example:
      >>> ' '.join(ast_flatten('pass')[:4])
      'AST#Module#Left AST#list#Left AST#Pass#Left AST#Pass#Right'
    """
    return flatten(python_tree(ast.parse(source)))


def ast_unflatten(tokens: Sequence[str]) -> ast.AST:
    """The syntax tree whose tokens these are, see `python_syntax`.

    Raises:
      ValueError: as `unflatten` and `python_syntax`.
    """
    return python_syntax(unflatten(tokens))


@register('ast_flatten', kind='task')
@dataclasses.dataclass(frozen=True, init=False)
class FlatTrees(Language):
    """Language modelling on the flat syntax trees of Python source, a token on each line.

    Args:
      nodes: False leaves out the brackets of nodes, as fine-tuning on plain code does; the
        sequence can then not be read back.
      dataset, data_dir, packing, feature, tokenizer: as for `language`.

    Raises:
      ValueError: a document that does not parse, for example one that was cut; the errors of
        `language`.

    Reference: Guo, Lu, Duan, Wang, Zhou, Yin, arXiv 2203.03850.

    Example:
      >>> FlatTrees.text(b'f(x)', nodes=False)
      'f\\nx'
    """

    nodes: bool

    def __init__(
        self,
        dataset: str = 'stdlib_code',
        nodes: bool = True,
        data_dir: str | None = None,
        packing: Literal['stream', 'documents'] = 'stream',
        feature: str | None = None,
        tokenizer: str | None = None,
    ):
        super().__init__(dataset, data_dir, packing, feature, tokenizer)
        self._set(nodes=nodes)

    @staticmethod
    def text(source: bytes, nodes: bool = True) -> str:
        """The tokens of a module, one on each line; no token contains a line break."""
        return '\n'.join(
            token for token in ast_flatten(source) if nodes or not _BRACKET.fullmatch(token)
        )

    # Cached because every length of an evaluation asks for them, and parsing is slow.
    @functools.lru_cache(maxsize=3)  # noqa: B019
    def documents(self, split: str) -> list[Int[np.ndarray, ' _']]:
        encoded = []
        for source in filter(None, self.corpus.documents(split)):
            try:
                text = self.text(source, self.nodes)
            except (SyntaxError, ValueError) as error:
                begin = source.decode(errors='replace').lstrip()[:40].splitlines()[0]
                raise ValueError(
                    f'ast_flatten needs whole modules of Python: the document {begin!r} ...: '
                    f"{error}; use language() or code_text(units='lines')"
                ) from None
            encoded.append(self.vocabulary.encode(text.encode()))
        return encoded
