"""The command of the ledger; `evidence.claims` describes it."""

import math
import pathlib
import signal
import sys
from collections.abc import Sequence

from evidence import claims
from evidence.claims import choosing, ledger, page
from evidence.claims.claim import Claim
from evidence.claims.results import MissingResultError
from posenc_jax.base.programs import program
from posenc_jax.lab.files import disk, lock, repository
from posenc_jax.lab.files.command import Parser

PAGE = repository.WRITTEN / 'docs' / 'claims.md'


def write_pages() -> None:
    """Writes docs/claims.md with its picture, and docs/choosing.md beside it."""
    there = ledger.read()
    page.write(PAGE, claims.CLAIMS, there)
    disk.write(PAGE.parent / 'choosing.md', choosing.markdown(claims.CLAIMS, there))


def cost(claim: Claim, workdir: pathlib.Path) -> float:
    """The minutes that a claim takes: 0 if the directory has its results already."""
    assert claim.how is not None
    return 0 if ledger.is_ready(claim.how, workdir) else claim.minutes


def left(workdir: pathlib.Path) -> list[Claim]:
    """The claims that have a sweep and are not measured with their present settings, cheapest
    first.
    """
    there = ledger.read()
    waiting = [
        claim
        for claim in claims.CLAIMS.values()
        if claim.how and not ledger.is_current(claim, there.get(claim.id))
    ]
    return sorted(waiting, key=lambda claim: (cost(claim, workdir), claim.id))


def run(
    waiting: Sequence[Claim], workdir: pathlib.Path, budget: float, keep: int | None = None
) -> list[str]:
    """Measures claims in their order while the budget, in minutes, has room for the next. Claims
    that share a sweep pay for it once. `keep` is the descriptor of the lock of the directory.

    Returns:
      The claims whose sweep failed, which has said why; the others are measured nevertheless.

    Raises:
      SystemExit: there is no room for the first one.
    """
    failed: dict[str, str] = {}
    for number, claim in enumerate(waiting):
        assert claim.how is not None
        sweep = ledger.run_command(claim.how).name
        if sweep in failed.values():
            failed[claim.id] = sweep
            continue
        if (minutes := cost(claim, workdir)) > budget:
            line = (
                f'the next claim, {claim.id}, takes about {minutes:g} minutes, and the budget has '
                f'{max(budget, 0):.3g} left'
            )
            if not number:
                sys.exit(f'{program("claims")}: nothing was measured: {line}')
            print(line)
            break
        print(f'{claim.id}: {claim.statement}', flush=True)
        began = ledger.monotonic()
        try:
            record = ledger.measure(claim, workdir, keep)
        except (ledger.FailedSweepError, MissingResultError) as error:
            print(f'{claim.id} is not measured: {error}', file=sys.stderr, flush=True)
            failed[claim.id] = sweep
            continue
        finally:
            budget -= (ledger.monotonic() - began) / 60
        write_pages()
        verdict = ledger.verdict(claim.how, record)
        effect = page.effect_text(claim.how, record)
        print(f'{claim.id}: {verdict} ({effect}), {record["minutes"]:g} minutes')
    return list(failed)


def main() -> None:
    parser = Parser(program('claims'), description=claims.__doc__)
    parser.add_argument('ids', nargs='*', metavar='ID')
    parser.add_argument('--budget', type=float, metavar='MINUTES')
    parser.add_argument('--workdir', type=pathlib.Path, default=pathlib.Path('runs/claims'))
    arguments = parser.parse_args()
    if arguments.ids and arguments.budget is not None:
        parser.error('give claims or a budget, not both')
    if arguments.budget is not None and not arguments.budget > 0:
        parser.error(f'--budget is a number of minutes above 0, got {arguments.budget:g}')
    workdir = arguments.workdir.resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asked, failed = ledger.chosen(claims.CLAIMS, arguments.ids), []
        if arguments.ids or arguments.budget is not None:
            with lock.hold(
                workdir / 'claims.lock', 'claims are being measured', 'give another --workdir'
            ) as held:
                budget = math.inf if asked else arguments.budget
                failed = run(asked or left(workdir), workdir, budget, held)
        write_pages()
    except (ValueError, OSError, lock.HeldError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit(
            f'{program("claims")}: stopped; trained runs are kept, and the same command continues'
        )
    page.show(claims.CLAIMS, ledger.read(), left(workdir))
    print(f'pages: {PAGE}, {PAGE.with_name("choosing.md")}')
    if failed:
        sys.exit(f'{program("claims")}: not measured, for the reasons above: {", ".join(failed)}')


if __name__ == '__main__':
    main()
