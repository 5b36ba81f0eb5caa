"""docs/claims.md, made from the claims and what was measured of them."""

import collections
import pathlib
import re
import statistics
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import rich.console
import rich.table

from evidence.claims import effect_pictures, ledger, training
from evidence.claims.claim import VERDICTS, Claim, Procedure
from evidence.claims.pictures import captioned
from posenc_jax.lab.files import disk
from posenc_jax.language.catalog import markdown_table

HEADER = """# Claims of the papers, and what was measured of them

`python -m evidence.claims` makes this page from `evidence/claims/` and `evidence/measured.json`.
The column *compared here* defines the effect of a claim; a larger effect speaks more for the claim.
The column *effect* has its mean and its range: over seeds of training, over samples of text that
one public model reads, over rounds of timing, or over cases that are computed without chance. An
effect against the claim is a positive number too, and so much *worse*; if some numbers of a row
speak for the claim and some against it, all keep their sign. The margin is the least effect that
counts. A verdict follows from the effects and the margin. A † says that the numbers of the runs are
not in the repository, so this effect cannot be computed again without training. A ‡ stands for a
difference of losses whose interval over documents is not known, so that its verdict rests on the
seeds alone. *Without* a task the effect is that of the other tasks; of more than five tasks a row
has the smallest and the largest of these effects.

- **holds**: the effect reaches the margin for every seed (sample, case), of at least three, and the
  interval over documents, where a row has one, lies above 0.
- **partly**: the mean reaches the margin, but not every seed, or the interval contains 0.
- **tolerated**: the claim allows a loss to rise by so much, and it rises less for every seed. But a
  method that cannot have the claimed property would pass this test too, such as a sliding window,
  which cannot use far context. So nothing is shown.
- **mixed**: some seeds are beyond the margin on one side, and some on the other.
- **contrary** and **partly contrary**: as *holds* and *partly*, on the other side.
  [contrary.md](results/contrary.md) says what was tried, and what the cause is if it is known.
- **open**: the mean is between the margins, or there are fewer than three seeds. The row says how
  large an effect so many seeds would have found in four of five tries. A claim is open, too, if the
  models for which it speaks have not learned the text; its row says so.
- **ceiling** and **floor**: the mean is between the margins, since both sides are as good, or as
  bad, as can be.

All models are small and trained for minutes, so a verdict is about this setting and not about the
paper's. Where a test or its settings were changed, the row also has what was found before.

Losses are in nats a byte or a token. Effects *of symbols*, *of exact match*, *of images* and the
like are shares: 0.19 of symbols are 19 in 100. *Orders of magnitude* are logarithms to the base 10:
0.3 is a factor of 2, and 1 a factor of 10. *Text* without a further word is English prose
(`pydoc_topics`), and *listings* are a generated text on which far context helps; see
[texts.md](texts.md).

A range over seeds says how far trainings differ, and not how far texts do. Some rows have a range
over documents too. It is the 95 % interval of a bootstrap over the scored documents or, for fewer
than ten documents, the range of the effects in each of them alone. Records before 2026-11-30 lack
it. English prose is scored on the same three documents for all sides. They have 8,399 bytes
together, most of them in one, so on other texts an effect near its margin may differ. Within their
trained length the models of English prose are .09 to .15 nats a byte below a 5-gram model of the
training text, and those of Python source .05 to .13. Rows whose models have learned less say so.
Claims B4 to B6, B30 to B33 and FE8 read whole plays (`shakespeare`), with 14 works for test. The
other claims of English prose were not measured again on that text.

The command in brackets behind a test is its *sweep*: the runs that `python -m evidence.experiments`
trains and evaluates for the claim. A record is current while the settings of its sweep, the code of
a sweep that is a program of its own, the formula of the effect and the margin stay the same. A
change of the package does not make it stale. Records before 2026-11-30 are taken to have the
formula and the margin of that day.

A margin is chosen before the first run, with these exceptions:

- The margins of A9, C6 to C10, M2 to M5 and S1 to S4 were set when their numbers were known, and
  that of N1 when the distance to sinusoids was.
- Those of B3, B11, B17, C11, C13, C17, N6, N8, N9, X1, X4, X5 and X7 were set after a short pilot,
  and those of FG10, FG11, FF6 and FR6 after a pilot with another seed.

Other parts of a test that were chosen late:

- The formulas of FN2, FI5b and FG12 were set after a pilot with another seed.
- The measures of FG6 and FG12, the waves of eight degrees of FF3, and the null methods of FE1 and
  FR11 were chosen when numbers were known.
- The set-ups of FF1, FF3 and FF7 were changed after three seeds; before, FF1 and FF3 were open and
  FF7 was contrary.

`python -m evidence.claims B5` measures claim B5 again, and `python -m evidence.claims --budget
30` spends 30 minutes on claims that are not measured yet, those that take least time first. To
check this page, run `python -m evidence.claims --budget 30 --sample N` with an N of your own. It
draws measured claims that fit into 30 minutes, trains them again, and prints both effects. The
minutes of a sweep are the larger of an estimate and of what its record took on two cores, on which
other work sometimes ran. A sweep that takes longer than expected is not cut off at the budget.

The verdicts by family:
"""

BY_CLASS = """
A claim has one of four classes. An *exact* claim holds by construction or by a theorem. A
*tolerance* allows a loss to rise by a stated amount. A *timing* compares times. All others are
*empirical*. The verdicts by class:
"""

TRAINED = """
*By seed* has the effects in the order of the seeds, with the sign of the formula: a positive number
speaks for the claim. The other numbers are the smallest and the largest over the runs of a sweep.
The length counts the tokens of a row, or what else `train.length` counts for the task. *Last fifth*
is how far the training loss fell from the fourth fifth of the batches to the last one; the curves
are in `evidence/results/*-curves.csv`. *Scored* is the number of tokens, points or answers that
were scored.

Records before 2026-12-01 lack the last fifth and the scored numbers. If the sweep is a program of
its own, they lack the other numbers too. A `+` after a commit says that files differed from it."""

PICTURE = 'claims/{}.png'  # one for each family
TRAINING = 'parameters', 'batches', 'rows', 'length'
# Pictures in which lengths are swept: family -> file in docs/results -> what it shows.
BY_LENGTH = {
    'Positions and lengths': {
        'length_generalisation/bilevel.png': 'English text by length: claims A13 and A14',
        'length_generalisation/bucket_sort.png': 'Sorting by length, with randomized positions',
    },
    'Relative biases': {
        'relative_bias/biases.png': 'English text by length: claims B8, B13 and C5',
        'relative_bias/listings.png': 'Listings by length: claims B25 to B29',
        'relative_bias/passkey.png': 'Passkeys by length and depth: claims B12, B20 and B22',
    },
}
WITHOUT = {  # method -> why it has no claim
    method: own['why']
    for own in tomllib.loads(
        pathlib.Path(__file__).with_name('without.toml').read_text(encoding='utf-8')
    )['without']
    for method in own['methods']
}
Claims = Mapping[str, Claim]
Records = Mapping[str, Mapping[str, Any]]


def measured(claims: Claims, records: Records) -> dict[str, str]:
    """Id -> verdict of the claims that are measured with their present settings."""
    return {
        name: ledger.verdict(claim.how, records[name])
        for name, claim in claims.items()
        if claim.how and ledger.is_current(claim, records.get(name))
    }


def effect_text(how: Procedure, record: Mapping[str, Any]) -> str:
    """Mean and range of the effects of a record, with the unit and the margin. Where they are
    known, it has the interval over documents, and the mean over tasks without each of them; of
    more than five tasks it has the smallest and the largest of these means. Of a loss that may
    rise by so much, it says how far it rose or fell. An effect against the claim is a positive
    number too, with the word 'worse'.

    Example:
      >>> how = Procedure('', (), 'a - b', unit='nats', margin=0.1)
      >>> effect_text(how, {'effects': {'0': 0.25, '1': 0.5, '2': 0.75}})
      '0.5 nats (0.25 to 0.75 over 3 seeds; at least 0.1 counts)'
      >>> effect_text(how, {'effects': {'0': -0.25, '1': -0.5}})
      '0.375 nats worse (0.25 to 0.5 over 2 seeds), where 0.1 better was asked'
    """
    effects, texts = ledger.effects(record), record.get('documents')
    values, tasks = list(effects.values()), record.get('without', {})
    mean = statistics.fmean(values)
    word, end, zero, sign = '', f'; at least {how.margin:g} counts)', 0.0, 1
    allowed = re.match(r'(min\()?([\d.]+) \+ ', how.effect)
    included = f'; one difference includes the {allowed[2]} that is allowed' if allowed else ''
    if allowed and not allowed[1]:  # the loss of a reference, and how much more of it is allowed
        zero = float(allowed[2])
        word, sign = (' more', -1) if mean <= zero else (' less', 1)
        end = f'), where {zero:g} more is allowed'
    elif mean < 0:
        word, sign, end = ' worse', -1, f'{included}), where {how.margin:g} better was asked'
    elif allowed:
        end = f'{end[:-1]}{included})'
    bounds = [texts['low'], texts['high']] if texts else []
    known = [*values, *tasks.values(), *bounds]
    if sign < 0 and not allowed and max(known) > 0:  # they do not all speak against the claim
        word, sign = '', 1
    turned = lambda effect: sign * (effect - zero) + 0.0  # and not -0
    low, high = sorted((turned(min(values)), turned(max(values))))
    span = f'{low:.3g} to {high:.3g} over {len(values)} {how.repeats}'
    by_size = sorted(tasks.items(), key=lambda pair: pair[1])
    shown = [by_size[0], by_size[-1]] if len(by_size) > 5 else tasks.items()
    span += ''.join(f'; without {task} {turned(effect):.3g}' for task, effect in shown)
    if texts:
        low, high = sorted((turned(texts['low']), turned(texts['high'])))
        span += f'; {low:.3g} to {high:.3g} over {texts["count"]} documents'
    return f'{turned(mean):.3g} {how.unit}{word} ({span}{end}'


# Verdicts of which `docs/results/contrary.md` says what was tried.
REFUTED = ('partly contrary', 'contrary')
COLUMNS = ('family', *VERDICTS, 'not measured', 'claims')
CLASSES = ('class', *VERDICTS, 'measured')


def counts(claims: Claims, records: Records) -> list[list[str]]:
    """Rows of `COLUMNS`, one for each family and one for all. A claim that was not measured
    is counted as not measured, and not as 'open'.
    """
    verdicts = measured(claims, records)
    found = [(claim.family, verdicts.get(name, 'not measured')) for name, claim in claims.items()]
    return _counted([*found, *(('all', verdict) for _, verdict in found)], COLUMNS[1:-1])


def counts_by_class(claims: Claims, records: Records) -> list[list[str]]:
    """Rows of `CLASSES`, one for each class of the measured claims."""
    verdicts = measured(claims, records)
    kinds = [(how.kind, verdicts[name]) for name in verdicts if (how := claims[name].how)]
    return _counted(sorted(kinds), CLASSES[1:-1])


def _counted(found: Sequence[tuple[str, str]], names: Sequence[str]) -> list[list[str]]:
    """A row for each group of (group, verdict), with the counts of the verdicts and of all."""
    rows = []
    for group in dict.fromkeys(group for group, _ in found):
        own = [verdict for of, verdict in found if of == group]
        rows.append([group, *(str(own.count(name)) for name in names), str(len(own))])
    return rows


def markdown(claims: Claims, records: Records) -> str:
    """The whole page."""
    verdicts = measured(claims, records)
    parts = [HEADER, table(COLUMNS, counts(claims, records)), BY_CLASS]
    parts += [table(CLASSES, counts_by_class(claims, records)), f'\n{_cost(claims, records)}']
    parts += [f'\n{_kept(records, verdicts)}', *_repeated(claims, records, verdicts)]
    for family in dict.fromkeys(claim.family for claim in claims.values()):
        own = [claim for claim in claims.values() if claim.family == family]
        parts.append(f'\n## {family}')
        if done := [claim for claim in own if claim.id in verdicts]:
            parts += ['', measured_table(done, records, verdicts)]
            parts.append(f'\n![Effects of the measured claims]({PICTURE.format(_slug(family))})')
            parts += [
                f'\n![{shown}](results/{file})' for file, shown in BY_LENGTH.get(family, {}).items()
            ]
        if waiting := [claim for claim in own if claim.id not in verdicts]:
            rows = [
                [
                    *(c.id, f'`{c.key}`', _cited(c), c.test + _of_other(records.get(c.id))),
                    f'{c.minutes:g}',
                ]
                for c in waiting
            ]
            names = ('id', 'method', 'the paper says', 'the test would be', 'minutes')
            parts += ['\nNot measured:\n', table(names, rows)]
    parts.append(f'\n## What was trained and scored\n{TRAINED}\n')
    own = [_trained_row(claims[name], records[name]) for name in claims if name in verdicts]
    parts.append(
        table(('id', 'class', 'by seed', *TRAINING, 'last fifth', 'scored', 'measured'), own)
    )
    rows = [[f'`{key}`', why] for key, why in sorted(WITHOUT.items())]
    parts += ['\n## Methods without a claim\n', table(('method', 'why'), rows)]
    return captioned('\n'.join(parts))


def _of_other(record: Mapping[str, Any] | None) -> str:
    """The end of a sentence about a claim that was measured with other settings than its own."""
    return f' (Measured {record["date"]} with other settings.)' if record else ''


def _slug(family: str) -> str:
    return re.sub(r'[^a-z]+', '_', family.lower()).strip('_')


def _cost(claims: Claims, records: Records) -> str:
    """The time of all sweeps of the ledger; one that several claims read counts once."""
    costs = ledger.minutes(claims.values(), records)
    return (
        f'The {len(costs)} sweeps of the whole ledger take about {sum(costs.values()) / 60:.0f} '
        'hours on two cores.'
    )


def _kept(records: Records, measured: Iterable[str]) -> str:
    """How many claims can be computed again from numbers that lie in the repository."""
    known = [name for name in measured if records[name]['results']]
    missing = len(list(measured)) - len(known)
    return (
        f'`evidence/results/` has the numbers of the runs of {len(known)} measured claims, from '
        'which a test computes their effects again. The numbers of the runs of the other '
        f'{missing} are missing; `evidence/measured.json` has only their effects by seed.'
    )


def _repeated(claims: Claims, records: Records, measured: Iterable[str]) -> list[str]:
    """How many claims were measured several times, each time in a new directory."""
    repeated = [name for name in measured if records[name].get('earlier')]
    same = [
        name for name in repeated if len(set(ledger.verdicts(claims[name], records[name]))) == 1
    ]
    if not repeated:
        return []
    return [
        f'\n{len(repeated)} claims were measured again in a new directory, that is, with newly '
        f'trained models. {len(same)} of them have the same verdict each time.'
    ]


def measured_table(done: Iterable[Claim], records: Records, verdicts: Mapping[str, str]) -> str:
    """A Markdown table of measured claims, those that hold first."""
    order = sorted(done, key=lambda claim: VERDICTS.index(verdicts[claim.id]))
    names = ('id', 'method', 'the paper says', 'compared here', 'effect', 'verdict')
    return table(names, [_row(c, records[c.id], verdicts[c.id]) for c in order])


def _row(claim: Claim, record: Mapping[str, Any], verdict: str) -> list[str]:
    how = claim.how
    assert how is not None
    command = ' '.join((how.sweep, *how.arguments))
    before = [found['date'] for found in record.get('earlier', [])]
    more = ''
    if verdict == 'open' and not how.unlearned and len(record['effects']) > 1:
        power = how.power(ledger.effects(record))
        more = f'; an effect of {power:.2g} would have been found in four of five tries'
    if before:
        more += f' (before: {", ".join(ledger.verdicts(claim, record)[:-1])}, {", ".join(before)})'
    for old in record.get('replaced', []):
        own = ledger.effects(old).values()
        more += (
            f' (another test or other settings on {old["date"]}: {min(own):.3g} to {max(own):.3g})'
        )
    word = f'[{verdict}](results/contrary.md)' if verdict in REFUTED else verdict
    return [
        f'<a id="{claim.id}"></a>{claim.id}',  # to which `link` leads
        f'`{claim.key}`',
        _cited(claim),
        f'{claim.test} (`{command}`)',
        effect_text(how, record) + _marks(how, record),
        f'**{word}**' + more + ''.join(f'. {why}' for why in (how.unlearned, how.remark) if why),
    ]


def _marks(how: Procedure, record: Mapping[str, Any]) -> str:
    """The marks behind an effect, which the head of the page explains."""
    of_text = how.unit.startswith('nats a byte') and how.kind != 'exact' and how.repeats == 'seeds'
    unknown = of_text and 'documents' not in record
    return ('' if record['results'] else ' †') + (' ‡' if unknown else '')


def link(claim: str) -> str:
    """From a page beside it to the row of a claim on docs/claims.md."""
    return f'[{claim}](claims.md#{claim})'


def _trained_row(claim: Claim, record: Mapping[str, Any]) -> list[str]:
    assert claim.how is not None
    numbers = {**record.get('training', {}), 'scored': record.get('scored')}
    cells = [training.range_text(numbers, name) for name in (*TRAINING, 'fell', 'scored')]
    commit = f'`{record["commit"]}`' if record['commit'] else ''
    effects = ' '.join(f'{effect:.3g}' for _, effect in sorted(ledger.effects(record).items()))
    return [claim.id, claim.how.kind, effects, *cells, f'{record["date"]} {commit}'.strip()]


def _cited(claim: Claim) -> str:
    if not claim.arxiv:
        return claim.statement
    return f'{claim.statement} ([{claim.arxiv}](https://arxiv.org/abs/{claim.arxiv}))'


def table(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return markdown_table(names, [[cell.replace('|', '\\|') for cell in row] for row in rows])


def write(path: pathlib.Path, claims: Claims, records: Records) -> None:
    """Writes the page, and a picture for each family in `claims/` beside it."""
    disk.write(path, markdown(claims, records))
    by_family = collections.defaultdict(dict)
    for name, verdict in measured(claims, records).items():
        by_family[claims[name].family][name] = verdict
    for family, verdicts in by_family.items():
        picture = path.parent / PICTURE.format(_slug(family))
        picture.parent.mkdir(parents=True, exist_ok=True)
        effect_pictures.draw(picture, claims, records, verdicts)


def show(claims: Claims, records: Records, waiting: Sequence[Claim]) -> None:
    """Prints the counts by verdict, and what is left."""
    shown = rich.table.Table('verdict', 'claims')
    for row in zip(COLUMNS[1:], counts(claims, records)[-1][1:]):
        shown.add_row(*row)
    console = rich.console.Console()
    console.print(shown)
    costs = ledger.minutes(waiting, records)
    console.print(
        f'{len(waiting)} claims have a sweep and are not measured with its present settings; '
        f'their {len(costs)} sweeps take about {sum(costs.values()):g} minutes on two cores'
    )
    console.print(_cost(claims, records))
    for claim in waiting:
        if claim.how:
            there = records.get(claim.id)
            other = f' (measured {there["date"]} with other settings)' if there else ''
            console.print(f'  {claim.id:5} {claim.minutes:5g} min  {claim.test}{other}')
    without = [name for name, claim in claims.items() if claim.how is None]
    console.print(f'{len(without)} claims have no sweep yet: {", ".join(without) or "none"}')
