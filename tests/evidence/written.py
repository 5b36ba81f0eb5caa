"""Results as an experiment writes them, without the experiment."""

import csv
import json

from evidence.claims import CLAIMS
from evidence.claims.results import ResultRows


def evaluation(folder, names, lengths, nll, seeds=(0, 1, 2)):
    """Writes the losses of an evaluation: 'RUN' or 'RUN | EXTENSION', and `nll(name, length)`."""
    rows = [
        {
            'run': f'runs/{name.split(" | ")[0]}_{seed}',
            'extend': name.partition(' | ')[2],
            'seed': seed,
            'length': length,
            'nll': nll(name, length),
        }
        for name in names
        for seed in seeds
        for length in lengths
    ]
    folder.mkdir()
    (folder / 'results.json').write_text(json.dumps({'results': rows}))


def table(folder, rows):
    """Writes rows (panel, name, x, seed, value) as `tables.report` does, without a picture."""
    folder.mkdir(parents=True)
    with (folder / 'results.csv').open('w', newline='') as file:
        csv.writer(file).writerows([('task', 'variant', 'x', 'seed', 'value'), *rows])


def effects(directory, *sweeps, seeds=(0, 1, 2)):
    """Claim -> its effects by seed, of all claims that some experiments measure."""
    own = [claim for claim in CLAIMS.values() if claim.how and claim.how.sweep in sweeps]
    found = {claim.id: claim.how.effects(ResultRows(directory)) for claim in own}
    assert all(values.keys() == set(seeds) for values in found.values())
    return found
