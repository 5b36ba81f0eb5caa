"""Exact Ollivier-Ricci curvature of an edge: one assignment problem against a linear program.

    python benchmarks/curvature.py  # regular graphs of degree 4, 8 and 16; one minute
    python benchmarks/curvature.py --degrees 6 --nodes 30 --rounds 3

Both compute all edges of the same graph in turn, in one process. The last graph has edges between
nodes of unequal degrees, for which the assignment has lcm(d_u, d_v) pieces. The column "apart" is
the largest difference of the two results.
"""

import statistics

import numpy as np
from measure import options, ratio, show, take_turns

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
    args = options(__doc__, nodes=40, degrees=[4, 8, 16], rounds=5)
    rng = lambda: np.random.default_rng(0)
    graphs = {f'regular, degree {d}': random_regular(rng(), args.nodes, d) for d in args.degrees}
    last = args.degrees[-1]
    graphs[f'random, mean degree {last}'] = random_graph(rng(), args.nodes, last / args.nodes)
    rows = []
    for name, graph in graphs.items():
        graph = graph.astype(np.float64)
        ways = {
            'assignment': lambda: curvature.ollivier_ricci(graph),
            'program': lambda: by_program(graph),
        }
        seconds, edges = take_turns(ways, args.rounds), len(edges_of(graph))
        apart = np.abs(ways['assignment']() - ways['program']()).max()
        times = [microseconds(seconds[way], edges) for way in ways]
        faster = f'{ratio(seconds, "program", "assignment"):.1f}x'
        rows.append((name, edges, *times, faster, f'{apart:.0e}'))
    columns = ('graph', 'edges', 'assignment, us/edge', 'program, us/edge', 'faster', 'apart')
    show(f'{args.nodes} nodes', columns, rows)


if __name__ == '__main__':
    main()
