"""The command of the ledger; `evidence.claims` describes it."""

import math
import pathlib
import signal
import sys
from collections.abc import Mapping, Sequence

import numpy as np

from evidence import claims
from evidence.claims import choosing, headline, kept, ledger, page, pictures
from evidence.claims.claim import Claim
from evidence.claims.results import MissingResultError, over_documents
from posenc_jax.base.programs import program
from posenc_jax.lab.files import disk, lock, repository
from posenc_jax.lab.files.command import Parser

PAGE = repository.WRITTEN / 'docs' / 'claims.md'
VERDICTS = repository.WRITTEN / 'posenc_jax' / 'verdicts.csv'


def write_pages() -> None:
    """Writes docs/claims.md, choosing.md and headline.md with their pictures, the verdicts that the
    package carries, and the lines below the pictures of the other pages.
    """
    there = ledger.read()
    disk.write(VERDICTS, choosing.table_of_verdicts(claims.CLAIMS, there))
    page.write(PAGE, claims.CLAIMS, there)
    for made in (choosing, headline):
        name = f'{made.__name__.rpartition(".")[2]}.md'
        disk.write(PAGE.parent / name, made.markdown(claims.CLAIMS, there))
    for path in pictures.pages(PAGE.parent):
        disk.write(path, pictures.captioned(path.read_text(encoding='utf-8'), path.parent.name))
    headline.draw(PAGE.parent, claims.CLAIMS, there)


def cost(claim: Claim, workdir: pathlib.Path, minutes: Mapping[str, float]) -> float:
    """The minutes that a claim takes: 0 if the directory has its results already. `minutes` maps
    the name of each sweep to the minutes that it takes.
    """
    assert claim.how is not None
    if ledger.is_ready(claim.how, workdir):
        return 0
    return minutes[ledger.run_command(claim.how).name]


def left(workdir: pathlib.Path) -> list[Claim]:
    """The claims that have a sweep and are not measured with their present settings, cheapest
    first.
    """
    there = ledger.read()
    minutes = ledger.minutes(claims.CLAIMS.values(), there)
    waiting = [
        claim
        for claim in claims.CLAIMS.values()
        if claim.how and not ledger.is_current(claim, there.get(claim.id))
    ]
    return sorted(waiting, key=lambda claim: (cost(claim, workdir, minutes), claim.id))


def run(
    waiting: Sequence[Claim],
    workdir: pathlib.Path,
    budget: float,
    keep: int | None = None,
    pages: bool = True,
) -> list[str]:
    """Measures claims in their order while the budget, in minutes, has room for the next. Claims
    that share a sweep pay for it once. `keep` is the descriptor of the lock of the directory; with
    `pages`, the pages are written after each claim.

    Returns:
      The claims whose sweep failed, which has said why; the others are measured nevertheless.

    Raises:
      SystemExit: there is no room for the first one.
    """
    failed: dict[str, str] = {}
    expected = ledger.minutes(claims.CLAIMS.values(), ledger.read())
    for number, claim in enumerate(waiting):
        assert claim.how is not None
        sweep = ledger.run_command(claim.how).name
        if sweep in failed.values():
            failed[claim.id] = sweep
            continue
        if (minutes := cost(claim, workdir, expected)) > budget:
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
        if pages:
            write_pages()
        verdict = ledger.verdict(claim.how, record)
        effect = page.effect_text(claim.how, record)
        print(f'{claim.id}: {verdict} ({effect}), {record["minutes"]:g} minutes')
    return list(failed)


def drawn(seed: int) -> list[Claim]:
    """The measured claims in an order that a seed draws."""
    there = ledger.read()
    known = [
        claim for claim in claims.CLAIMS.values() if ledger.is_current(claim, there.get(claim.id))
    ]
    return [known[number] for number in np.random.default_rng(seed).permutation(len(known))]


def again(order: Sequence[Claim], workdir: pathlib.Path, budget: float, keep: int | None) -> None:
    """Measures claims anew, in their order, each of which the rest of the budget has room for, and
    prints what was found beside the record. The ledger and the pages stay as they are.
    """
    there, measured, failed = ledger.read(), [], []
    minutes = ledger.minutes(claims.CLAIMS.values(), there)
    for claim in order:
        how = claim.how
        assert how is not None
        if cost(claim, workdir, minutes) > budget:
            continue
        print(f'{claim.id}: {claim.statement}', flush=True)
        began = ledger.monotonic()
        try:
            effects, results = ledger.run_and_read(claim, workdir, keep)
        except (ledger.FailedSweepError, MissingResultError) as error:
            print(f'{claim.id} is not measured: {error}', file=sys.stderr, flush=True)
            failed.append(claim.id)
            continue
        finally:
            budget -= (ledger.monotonic() - began) / 60
        record, own = there[claim.id], {'effects': effects}
        if (interval := over_documents(how.effects, results)) is not None:
            own['documents'] = dict(zip(('low', 'high'), interval))
        verdicts = ledger.verdict(how, record), ledger.verdict(how, own)
        word = 'the same' if verdicts[0] == verdicts[1] else ' -> '.join(verdicts)
        listed = lambda found: ' '.join(f'{value:.3g}' for _, value in sorted(found.items()))
        measured.append(claim.id)
        print(
            f'{claim.id}: {word}. By seed the record has {listed(ledger.effects(record))}, and now '
            f'there are {listed(effects)}; at least {how.margin:g} counts',
            flush=True,
        )
    if not measured and not failed:
        sys.exit(f'{program("claims")}: no measured claim takes at most {budget:g} minutes')
    if failed:
        sys.exit(f'{program("claims")}: not measured, for the reasons above: {", ".join(failed)}')


def main() -> None:
    parser = Parser(program('claims'), description=claims.__doc__)
    parser.add_argument('ids', nargs='*', metavar='ID')
    parser.add_argument('--budget', type=float, metavar='MINUTES')
    parser.add_argument('--sample', type=int, metavar='SEED')
    parser.add_argument('--workdir', type=pathlib.Path)
    parser.add_argument('--no-pages', action='store_true')
    arguments = parser.parse_args()
    if arguments.ids and arguments.budget is not None:
        parser.error('give claims or a budget, not both')
    if arguments.budget is not None and not arguments.budget > 0:
        parser.error(f'--budget is a number of minutes above 0, got {arguments.budget:g}')
    seed = arguments.sample
    if seed is not None and (arguments.budget is None or seed < 0):
        parser.error('--sample SEED draws what --budget MINUTES measures again; SEED is at least 0')
    usual = pathlib.Path('runs', 'claims' if seed is None else f'claims_again_{seed}')
    workdir = (arguments.workdir or usual).resolve()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        asked, failed = ledger.chosen(claims.CLAIMS, arguments.ids), []
        if arguments.ids or arguments.budget is not None:
            with lock.hold(
                workdir / 'claims.lock', 'claims are being measured', 'give another --workdir'
            ) as held:
                budget = math.inf if asked else arguments.budget
                if seed is not None:
                    return again(drawn(seed), workdir, budget, held)
                ledger.check_clean()
                failed = run(asked or left(workdir), workdir, budget, held, not arguments.no_pages)
        kept.check_kept(claims.CLAIMS, ledger.read())
        if not arguments.no_pages:
            write_pages()
    except (ValueError, OSError, lock.HeldError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        sys.exit(
            f'{program("claims")}: stopped; trained runs are kept, and the same command continues'
        )
    page.show(claims.CLAIMS, ledger.read(), left(workdir))
    if not arguments.no_pages:
        print(f'pages: {PAGE}, and choosing.md and headline.md beside it')
    if failed:
        sys.exit(f'{program("claims")}: not measured, for the reasons above: {", ".join(failed)}')


if __name__ == '__main__':
    main()
