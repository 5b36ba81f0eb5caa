"""docs/choosing.md: what to take for each need, as far as measured claims say so."""

import dataclasses
import pathlib
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from evidence.claims import page
from evidence.claims.claim import Claim

PATH = pathlib.Path(__file__).with_suffix('.toml')
HEADER = """# Choosing an encoding

This page says what to try first for each need. It rests on the measured claims of
[claims.md](claims.md), in small models that were trained for minutes; a larger model may behave
otherwise. `python -m evidence.claims` makes the page.
"""
BELOW = """
Each advice names the claims on which it rests, and it is shown only while they have the verdicts
that it needs. Verdicts other than open rest on at least three seeds.
"""


@dataclasses.dataclass(frozen=True)
class Need:
    """What somebody may want, and what the claims say of it.

    Attributes:
      take: advice in one or two sentences; '' if no verdict supports one.
      first: what the reader must know before they read the advice.
      rests: claim -> the verdict without which the advice is not shown.
      others: further claims that bear on the need.
      limits: what the reader must know before they follow the advice, and what no claim is about.
    """

    take: str = ''
    rests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    others: Sequence[str] = ()
    limits: str = ''
    first: str = ''

    @property
    def claims(self) -> tuple[str, ...]:
        return (*self.rests, *self.others)

    def stands(self, verdicts: Mapping[str, str]) -> bool:
        """Whether there is an advice and all claims have the verdicts that it needs."""
        return bool(self.take) and all(verdicts.get(k) == v for k, v in self.rests.items())


def _needs() -> dict[str, Need]:
    content = tomllib.loads(PATH.read_text(encoding='utf-8'))
    return {need.pop('title'): Need(**need) for need in content['need']}


NEEDS: Mapping[str, Need] = _needs()


def markdown(claims: page.Claims, records: page.Records) -> str:
    """The whole page."""
    verdicts = page.measured(claims, records)
    rows, sections = [], []
    for title, need in NEEDS.items():
        advice, ids = (
            (need.take, ', '.join(need.rests)) if need.stands(verdicts) else ('No advice yet.', '-')
        )
        anchor = ''.join(c for c in title.lower() if c.isalnum() or c in ' -').replace(' ', '-')
        rows.append([f'[{title}](#{anchor})', advice, ids])
        known = [claims[name] for name in need.claims if name in claims]
        done = [_row(c, records[c.id], verdicts[c.id]) for c in known if c.id in verdicts]
        left = [f'{c.id} (`{c.key}`)' for c in known if c.id not in verdicts]
        sections += [f'## {title}', need.first, advice, need.limits]
        sections.append(page.table(COLUMNS, done) if done else '')
        sections.append(f'Not measured yet: {", ".join(left)}.' if left else '')
    first = page.table(('you need', 'take', 'claims'), rows)
    return '\n\n'.join(part.strip() for part in (HEADER, first, BELOW, *sections) if part) + '\n'


COLUMNS = ('claim', 'method', 'verdict', 'effect', 'compared')


def _row(claim: Claim, record: Mapping[str, Any], verdict: str) -> list[str]:
    assert claim.how is not None
    effect = page.effect_text(claim.how, record)
    test = f'{claim.test} {claim.how.remark}'.strip()
    return [claim.id, f'`{claim.key}`', verdict, effect, test]
