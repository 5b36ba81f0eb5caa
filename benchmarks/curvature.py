"""Exact Ollivier-Ricci curvature of an edge: one assignment problem against a linear program.

    python benchmarks/curvature.py  # regular graphs of degree 4, 8 and 16; one minute
    python benchmarks/curvature.py --degrees 6 --nodes 30 --rounds 3

Both compute all edges of the same graph in turn, in one process. The last graph has edges between
nodes of unequal degrees, for which the assignment has lcm(d_u, d_v) pieces. The column "apart" is
the largest difference of the two results.
"""

import argparse
import statistics

import numpy as np
from measure import ratio, show, take_turns

from posenc_jax.features.graphs import curvature
from posenc_jax.features.graphs.adjacency import edges_of
from posenc_jax.lab.tasks.graphs import random_graph, random_regular


def by_program(adjacency: np.ndarray) -> np.ndarray:
    """The curvatures of all edges, each by a linear program."""
    hops, found = curvature.near_distances(adjacency), []
    for u, v in edges_of(adjacency):
        at_u, at_v = np.flatnonzero(adjacency[u]), np.flatnonzero(adjacency[v])
        masses = [np.full(len(at), 1 / len(at)) for at in (at_u, at_v)]
        cost = hops[np.ix_(at_u, at_v)].astype(np.float64)
        found.append(1 - curvature.transport_by_program(cost, *masses))
    return np.array(found)


def microseconds(times: list[float], edges: int) -> str:
    """Median and minimum of an edge in microseconds, as text."""
    each = [second / edges * 1e6 for second in times]
    return f'{statistics.median(each):.0f} ({min(each):.0f})'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--nodes', type=int, default=40)
    parser.add_argument('--degrees', type=int, nargs='+', default=[4, 8, 16])
    parser.add_argument('--rounds', type=int, default=5)
    args = parser.parse_args()
    graphs = {
        f'regular, degree {degree}': random_regular(np.random.default_rng(0), args.nodes, degree)
        for degree in args.degrees
    }
    density = args.degrees[-1] / args.nodes
    graphs[f'random, mean degree {args.degrees[-1]}'] = random_graph(
        np.random.default_rng(0), args.nodes, density
    )
    rows = []
    for name, graph in graphs.items():
        graph = graph.astype(np.float64)
        seconds = take_turns(
            {
                'assignment': lambda: curvature.ollivier_ricci(graph),
                'program': lambda: by_program(graph),
            },
            args.rounds,
        )
        edges = len(edges_of(graph))
        apart = np.abs(curvature.ollivier_ricci(graph) - by_program(graph)).max()
        rows.append(
            (
                name,
                edges,
                microseconds(seconds['assignment'], edges),
                microseconds(seconds['program'], edges),
                f'{ratio(seconds, "program", "assignment"):.1f}x',
                f'{apart:.0e}',
            )
        )
    columns = ('graph', 'edges', 'assignment, us/edge', 'program, us/edge', 'faster', 'apart')
    show(f'{args.nodes} nodes', columns, rows)


if __name__ == '__main__':
    main()
