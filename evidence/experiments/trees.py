"""Tasks on binary trees, whose nodes have positions in the tree or in the sequence of all nodes.

Data:      random trees of 12 to 20 nodes, at most four steps deep. The nodes stand breadth first,
           and each has one of eight values. The shapes of the test are in no batch of training.
Groups:    translation   a second tree behind the first one asks for its own values: a copy of the
                         tree, or its mirror image. Half of the rows ask for either.
           grandparents  the value of the grandparent of each node that has one
Measured:  nodes that an encoder of two layers of width 64 answers, and trees of which all nodes
           are right. Positions are products of rotations (`algebraic_tree`), codes of branches
           (`tree_pe`), or sinusoids of the index of a node in the row.
Paper:     Kogkalidis et al. (arXiv 2312.16045): products of rotations are better on trees than
           encodings of sequences and than tree positional encoding. Their models are
           encoder-decoders, which also evaluate expressions. Shiv and Quirk (NeurIPS 2019):
           positions in trees are better than positions in sequences.
"""

import argparse
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from evidence.experiments.fitting import fitted
from evidence.experiments.program import Found, Program, each
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.methods.tree_paths import tree_paths
from posenc_jax.protocol.tokens import Tokens

DEPTH, FEWEST, MOST, KINDS = 4, 12, 20, 8
ASKED = KINDS  # the token of a node that asks for a copy; the next one asks for the mirror image
POOL, TESTED, ROWS = 4096, 512, 32
GROUPS = ('translation', 'grandparents')
ENCODINGS = {
    'algebraic_tree': f'algebraic_tree(levels={DEPTH})',
    'tree_pe': f'tree_pe(levels={DEPTH})',
    'sinusoidal': 'sinusoidal()',
}


class Tree(NamedTuple):
    """A tree, breadth first.

    Attributes:
      paths: of the nodes [n, DEPTH], see `tree_paths`.
      grandparents: of the nodes [n], -1 for those without.
      mirror: of the nodes of the mirror image [n], their paths there are `mirrored`.
      mirrored: the paths of the mirror image, breadth first.
    """

    paths: np.ndarray
    grandparents: np.ndarray
    mirror: np.ndarray
    mirrored: np.ndarray


def tree(rng: np.random.Generator) -> Tree:
    """A random tree: as long as it has too few nodes, a free place for a child is filled."""
    nodes, free = [()], [(1,), (2,)]
    for _ in range(int(rng.integers(FEWEST, MOST, endpoint=True)) - 1):
        node = free.pop(int(rng.integers(len(free))))
        nodes.append(node)  # pyright: ignore[reportArgumentType]
        free += [(*node, branch) for branch in (1, 2) if len(node) < DEPTH]
    nodes.sort(key=lambda node: (len(node), node))
    swapped = [tuple(3 - branch for branch in node) for node in nodes]
    order = sorted(range(len(nodes)), key=lambda i: (len(nodes[i]), swapped[i]))
    above = {node: place for place, node in enumerate(nodes)}
    return Tree(
        _paths(nodes),
        np.array([above[node[:-2]] if len(node) > 1 else -1 for node in nodes]),
        np.array(order),
        _paths([swapped[i] for i in order]),
    )


def _paths(nodes: list[tuple[int, ...]]) -> np.ndarray:
    """Paths of nodes, which are given by the branches from the root, breadth first."""
    place = {node: i for i, node in enumerate(nodes)}
    parents = [place[node[:-1]] if node else -1 for node in nodes]
    return tree_paths(parents, [node[-1] if node else 0 for node in nodes], DEPTH)


@functools.cache
def trees(count: int) -> list[Tree]:
    """Trees of different shapes."""
    rng, found = np.random.default_rng(0), {}
    while len(found) < count:
        drawn = tree(rng)
        found.setdefault(drawn.paths.tobytes(), drawn)
    return list(found.values())


def rows(rng: np.random.Generator, drawn: list[Tree], group: str) -> dict[str, np.ndarray]:
    """A row for each tree: tokens, paths, which tokens are real, the answers, and which tokens
    have one. Of 'translation' the tokens that ask come behind those of the tree; a row of an odd
    number asks for the mirror image.
    """
    width = 2 * MOST if group == 'translation' else MOST
    made = {
        'tokens': np.zeros((len(drawn), width), np.int32),
        'paths': np.zeros((len(drawn), width, DEPTH), np.int32),
        'valid': np.zeros((len(drawn), width), bool),
        'answers': np.zeros((len(drawn), width), np.int32),
        'asked': np.zeros((len(drawn), width), bool),
    }
    for number, own in enumerate(drawn):
        count = len(own.paths)
        values = rng.integers(0, KINDS, count)
        row = {name: array[number] for name, array in made.items()}
        row['tokens'][:count], row['paths'][:count], row['valid'][:count] = values, own.paths, True
        if group == 'grandparents':
            row['answers'][:count] = values[own.grandparents]
            row['asked'][:count] = own.grandparents >= 0
            continue
        mirrored, behind = number % 2, slice(count, 2 * count)
        row['tokens'][behind] = ASKED + mirrored
        row['paths'][behind] = own.mirrored if mirrored else own.paths
        row['answers'][behind] = values[own.mirror] if mirrored else values
        row['valid'][behind] = row['asked'][behind] = True
    return made


def logits(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """The logits of all tokens."""
    in_tree = not model.cfg.encoding.startswith('sinusoidal')
    positions = batch['paths'] if in_tree else None
    return model(batch['tokens'], Tokens.of(positions=positions, valid=batch['valid']))


def loss(model: Transformer, batch: dict[str, jax.Array]) -> jax.Array:
    """Nats of an answer."""
    found = logits(model, batch)
    nats = optax.softmax_cross_entropy_with_integer_labels(found, batch['answers'])
    return (nats * batch['asked']).sum() / jnp.maximum(batch['asked'].sum(), 1)


def measured(group: str, encoding: str, seed: int, options: argparse.Namespace) -> Found:
    """The shares of nodes and of trees that are right."""
    steps = options.steps
    cfg = TransformerConfig(
        vocab_size=KINDS + 2, output_size=KINDS, train_len=2 * MOST, layers=2, width=64, heads=4,
        kind='encoder', encoding=ENCODINGS[encoding],
    )  # fmt: skip
    every = trees(TESTED + POOL)
    tested, train = every[:TESTED], every[TESTED:]
    rng = np.random.default_rng([seed, 1])
    drawn = lambda: [train[i] for i in rng.integers(0, len(train), ROWS)]
    batches = (rows(rng, drawn(), group) for _ in range(steps))
    start = Transformer(cfg, rngs=nnx.Rngs(seed))
    model = fitted(start, loss, batches, steps=steps, rate=options.rate)
    test = rows(np.random.default_rng(0), tested, group)
    found = np.asarray(nnx.jit(logits)(model, test).argmax(-1)) == test['answers']  # pyright: ignore[reportArgumentType]
    parts = {'copies': 0, 'mirror images': 1} if group == 'translation' else {group: None}
    for panel, part in parts.items():
        chosen = slice(None) if part is None else slice(part, None, 2)
        right, asked = found[chosen], test['asked'][chosen]
        yield panel, f'{encoding}, nodes', MOST, float(right[asked].mean())
        yield panel, f'{encoding}, trees', MOST, float((right | ~asked).all(-1).mean())


PROGRAM = Program(
    __name__,
    __doc__,
    each(measured, 'groups', 'encodings'),
    choose={'groups': GROUPS, 'encodings': ENCODINGS},
    options={'steps': 800, 'rate': 2e-3},
    table={'title': 'Trees', 'x': 'nodes', 'value': 'right'},
)
