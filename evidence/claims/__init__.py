"""The ledger of claims: what papers say of their methods, and what was measured of it here.

Command:   python -m evidence.claims [ID ...] [--budget MINUTES] [--workdir runs/claims]
           Without arguments the command says what is measured and what is left. IDs measure these
           claims. A budget measures what is left, cheapest first, until the next claim would take
           longer than what remains of the budget.
Results:   evidence/measured.json, and the pages docs/claims.md and docs/choosing.md, which are
           made from it. Runs lie in WORKDIR/SWEEP-DIGEST; the digest is that of all settings of the
           sweep. A run that exists is not trained again, so the command may be interrupted and
           started again.

`papers.csv` has the sentences of the papers, and for those that nothing measures yet the test that
would. A module for each family of methods says how the others are measured.
"""

import csv
import pathlib

from evidence.claims import (
    analyses,
    caches,
    content,
    ids,
    mixers,
    public_rotary,
    relative,
    rotary,
    rotary_extended,
    rotary_factors,
    rotary_text,
    space,
    tasks,
    text,
    timing,
)
from evidence.claims.claim import Claim

MEASUREMENTS = {
    **ids.MEASUREMENTS,
    **tasks.MEASUREMENTS,
    **text.MEASUREMENTS,
    **relative.MEASUREMENTS,
    **rotary.MEASUREMENTS,
    **rotary_extended.MEASUREMENTS,
    **rotary_factors.MEASUREMENTS,
    **content.MEASUREMENTS,
    **mixers.MEASUREMENTS,
    **space.MEASUREMENTS,
    **caches.MEASUREMENTS,
    **timing.MEASUREMENTS,
    **analyses.MEASUREMENTS,
    **public_rotary.MEASUREMENTS,
    **rotary_text.MEASUREMENTS,
}


def _claims() -> dict[str, Claim]:
    with pathlib.Path(__file__).with_name('papers.csv').open(newline='') as file:
        rows = list(csv.DictReader(file))
    made = {
        row['id']: Claim(
            **{**row, 'minutes': float(row['minutes'] or 0)},  # pyright: ignore[reportArgumentType]
            how=MEASUREMENTS.get(row['id']),
        )
        for row in rows
    }
    if unknown := sorted(MEASUREMENTS.keys() - made.keys()):
        raise ValueError(f'papers.csv has no claims {unknown}, which are measured')
    if wrong := sorted(claim.id for claim in made.values() if bool(claim.test) == bool(claim.how)):
        raise ValueError(f'a test in papers.csv or a measurement, not both or neither: {wrong}')
    return made


CLAIMS = _claims()
