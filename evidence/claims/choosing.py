"""docs/choosing.md: what to take for each need, as far as measured claims say so; and the verdicts
that the package carries, `posenc_jax/verdicts.csv`.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping

from evidence.claims import page
from evidence.claims.claim import Claim
from posenc_jax.language import choosing
from posenc_jax.language.choosing import Need
from posenc_jax.language.measured import Verdict

HEADER = """# Choosing an encoding

This page says what to try first for each need. It rests on the measured claims of
[claims.md](claims.md), which compare small models that were trained for minutes. A larger model may
behave otherwise. `python -m evidence.claims` makes the page. `pj.choose` gives the same advice in
Python, with the effect of each claim. Its arguments are nine questions, which `help(pj.choose)`
explains. With some of them it leaves out what trains too slowly, has no kernel of JAX, or cannot be
read by another library:

```python
import posenc_jax as pj

print(pj.choose(checkpoint=True, tuning=False, factor=4, needs='retrieval'))
```
"""
BELOW = """
Every piece of advice names the claims on which it rests, and it is shown only while they have the
verdicts that it needs. [claims.md](claims.md) explains the verdicts and the units of the effects.
Verdicts other than open rest on at least three seeds. Losses are in nats a byte.

The tables below give the time of a train step and of decoding as multiples of that with the named
encoding, and the temporary memory of a train step in MiB. [performance.md](performance.md) measures
all three; what was not measured is left empty, and images, fields, points, graphs and trees are not
decoded. A kernel of JAX is cuDNN or splash attention.
"""


def stands(need: Need, verdicts: Mapping[str, str]) -> bool:
    """Whether there is an advice and all claims have the verdicts that it needs."""
    return bool(need.take) and all(verdicts.get(k) == v for k, v in need.rests.items())


def markdown(claims: page.Claims, records: page.Records) -> str:
    """The whole page."""
    verdicts = page.measured(claims, records)
    rows, sections = [], []
    for need in choosing.all_needs():
        given = stands(need, verdicts)
        advice = need.take if given else 'No advice yet.'
        ids = ', '.join(map(page.link, need.rests)) if given else '-'
        rows.append([f'[{need.title}](#{need.anchor})', advice, ids])
        known = [claims[name] for name in need.claims if name in claims]
        done = [_row(c, records[c.id], verdicts[c.id]) for c in known if c.id in verdicts]
        left = [f'{c.id} (`{c.key}`)' for c in known if c.id not in verdicts]
        sections += [f'## {need.title}', need.first, advice, need.limits]
        sections.append(page.table(PICKED, map(_pick, need.picks)) if given and need.picks else '')
        sections.append(f'Scale of the models: {need.scale}.' if need.scale else '')
        sections.append(page.table(COLUMNS, done) if done else '')
        sections.append(f'Not measured yet: {", ".join(left)}.' if left else '')
    first = page.table(('you need', 'take', 'claims'), rows)
    return '\n\n'.join(part.strip() for part in (HEADER, first, BELOW, *sections) if part) + '\n'


COLUMNS = ('claim', 'method', 'verdict', 'effect', 'compared')
PICKED = ('take', 'because', 'train step', 'decoding', 'MiB', 'kernel', 'also read by')


def _row(claim: Claim, record: Mapping, verdict: str) -> list[str]:
    assert claim.how is not None
    effect = page.effect_text(claim.how, record)
    test = f'{claim.test} {claim.how.remark}'.strip()
    return [page.link(claim.id), f'`{claim.key}`', verdict, effect, test]


def _pick(pick: choosing.Pick) -> list[str]:
    spec = pick.spec.format(factor='N', twice='2N')
    costs = choosing.cost_cells(choosing.example(pick.spec))
    kernel = choosing.kernel(choosing.example(pick.spec))
    return [f'`{spec}`', pick.why, *costs, kernel, ', '.join(pick.loads)]


def table_of_verdicts(claims: page.Claims, records: page.Records) -> str:
    """What `posenc_jax.language.measured` reads: a row for each measured claim, as CSV."""
    text = io.StringIO(newline='')
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(field.name for field in dataclasses.fields(Verdict))
    for name, verdict in page.measured(claims, records).items():
        claim = claims[name]
        assert claim.how is not None
        effect = page.effect_text(claim.how, records[name])
        writer.writerow((name, claim.key, verdict, effect, claim.test))
    return text.getvalue()
