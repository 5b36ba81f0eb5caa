"""Finds the places of the mutations in a checkout, and changes them.

A mutation is an expression in a function, not a line: it stays found where a file gets shorter. A
file that is not there, or that holds no such expression, is looked for by its name, and then among
all files of its area. The expression must occur once there.
"""

import ast
import dataclasses
import pathlib

LIST = pathlib.Path(__file__).with_name('list.txt')
AREAS = {
    'methods': ('methods', 'mixers', 'features', 'fields'),
    'engine': ('attention', 'protocol', 'layer', 'base'),
    'lab': ('lab',),
}
WILD = set('ABCD')  # stand for any expression


@dataclasses.dataclass(frozen=True)
class Mutation:
    kind: str
    file: str
    function: str
    old: ast.expr
    new: ast.expr
    hints: tuple[str, ...]

    @property
    def name(self) -> str:
        return f'{self.file}:{self.function}'

    @property
    def area(self) -> str:
        top = self.file.split('/')[0]
        return next(area for area, folders in AREAS.items() if top in folders)


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a mutation is in a checkout, and the expressions that stand for its letters."""

    path: pathlib.Path
    node: ast.expr
    found: dict[str, ast.expr]

    @property
    def span(self):
        node = self.node
        return (node.lineno, node.col_offset), (node.end_lineno, node.end_col_offset)


def mutations() -> list[Mutation]:
    lines = LIST.read_text(encoding='utf-8').replace('\n    ', ' ').splitlines()
    read = lambda text: ast.parse(text.strip(), mode='eval').body
    parsed = []
    for line in (line for line in lines if line and not line.startswith('#')):
        head, _, rest = line.partition(': ')
        change, _, hints = rest.partition('@')
        old, new = map(read, change.split(' -> '))
        parsed.append(Mutation(*head.split(), old, new, tuple(hints.split())))
    return parsed


def same(pattern, node, found: dict[str, ast.expr]) -> bool:
    """Whether a node has the form of a pattern; `found` gets the expressions of its letters."""
    if isinstance(pattern, ast.Name) and pattern.id in WILD:
        first = found.setdefault(pattern.id, node)
        return isinstance(node, ast.expr) and ast.dump(first) == ast.dump(node)
    if type(pattern) is not type(node):
        return False
    if isinstance(pattern, list):
        return len(pattern) == len(node) and all(same(a, b, found) for a, b in zip(pattern, node))
    if isinstance(pattern, ast.AST):
        fields = (name for name in pattern._fields if name not in ('ctx', 'kind'))
        return all(same(getattr(pattern, name), getattr(node, name), found) for name in fields)
    return pattern == node


def places(mutation: Mutation, path: pathlib.Path, anywhere: bool) -> list[Place]:
    """The places of one file, in the function of the mutation or in all of them."""
    tree = ast.parse(path.read_text(encoding='utf-8'))
    inside = lambda node: isinstance(node, ast.FunctionDef) and node.name == mutation.function
    within = [tree] if anywhere else [node for node in ast.walk(tree) if inside(node)]
    found = {}
    for node in (node for top in within for node in ast.walk(top)):
        letters: dict[str, ast.expr] = {}
        if isinstance(node, ast.expr) and same(mutation.old, node, letters):
            place = Place(path, node, letters)
            found[place.span] = place
    return list(found.values())


def find(mutation: Mutation, root: pathlib.Path) -> Place | str:
    """The one place of a mutation, or why there is none."""
    package = root / 'posenc_jax'
    there = package / f'{mutation.file}.py'
    area = [path for top in AREAS[mutation.area] for path in sorted((package / top).rglob('*.py'))]
    groups = [[there]] if there.exists() else []
    groups += [[path for path in area if path.name == there.name], area]
    several = 0
    for group in groups:
        for anywhere in (False, True):
            found = [place for path in group for place in places(mutation, path, anywhere)]
            if len(found) == 1:
                return found[0]
            several = several or len(found)
    return f'{several} places' if several else 'not found'


def replaced(place: Place, text: str, source: str) -> str:
    """The source of the file with `text` in the place of the expression."""
    lines = source.encode().splitlines(keepends=True)
    start, end = (sum(map(len, lines[: line - 1])) + column for line, column in place.span)
    whole = b''.join(lines)
    return (whole[:start] + text.encode() + whole[end:]).decode()


def changed(mutation: Mutation, place: Place) -> str:
    """The mutated source, which compiles and differs."""

    class Fill(ast.NodeTransformer):
        def visit_Name(self, node):
            return place.found.get(node.id, node)

    before = place.path.read_text(encoding='utf-8')
    new = Fill().visit(ast.parse(ast.unparse(mutation.new), mode='eval').body)
    source = replaced(place, f'({ast.unparse(new)})', before)
    tree = ast.parse(source)
    assert ast.dump(tree) != ast.dump(ast.parse(before)), f'{mutation.name} changes nothing'
    compile(tree, place.path, 'exec')
    return source
