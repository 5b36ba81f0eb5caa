"""The numbers of runs in evidence/results, and whether they give the effects of the records."""

from collections.abc import Mapping
from typing import Any

from evidence.claims import ledger
from evidence.claims.claim import Claim
from evidence.claims.results import MissingResultError, ResultRows


def recomputed(claim: Claim, record: Mapping[str, Any]) -> dict[int, float] | None:
    """Seed -> effect, from the numbers of the runs that the repository keeps; None if the numbers
    of this record are missing.
    """
    assert claim.how is not None
    if record['results'] is None:
        return None
    found = claim.how.effects(ResultRows.kept(ledger.RESULTS / record['results']))
    return {seed: round(value, 6) for seed, value in found.items()}


def check_kept(claims: Mapping[str, Claim], records: Mapping[str, Mapping[str, Any]]) -> None:
    """Checks that the numbers in evidence/results give the effects of their records.

    Raises:
      ValueError: a table is missing or lacks numbers, or gives other effects.
    """
    for name, record in records.items():
        if not ledger.is_current(claims[name], record):
            continue
        path = ledger.RESULTS / str(record['results'])
        again = f'run `python -m evidence.claims {name}`'
        try:
            found = recomputed(claims[name], record)
        except (OSError, MissingResultError) as error:
            raise ValueError(f'claim {name}: {path.name} does not fit: {error}; {again}') from None
        given = ledger.effects(record)
        if found is not None and (
            found.keys() != given.keys()
            or any(abs(found[seed] - given[seed]) > 1.5e-6 for seed in given)
        ):
            raise ValueError(
                f'claim {name}: {path.name} gives the effects {list(found.values())}, and '
                f'{ledger.MEASURED.name} has {list(given.values())}; {again}'
            )
