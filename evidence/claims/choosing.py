"""docs/choosing.md: what to take for each need, as far as measured claims say so."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from evidence.claims import page
from evidence.claims.claim import Claim

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

    take: str
    rests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    others: tuple[str, ...] = ()
    limits: str = ''
    first: str = ''

    @property
    def claims(self) -> tuple[str, ...]:
        return (*self.rests, *self.others)

    def stands(self, verdicts: Mapping[str, str]) -> bool:
        """Whether there is an advice and all claims have the verdicts that it needs."""
        return bool(self.take) and all(verdicts.get(k) == v for k, v in self.rests.items())


NEEDS: Mapping[str, Need] = {
    'A model of text reads up to eight times its trained length, without tuning': Need(
        '`kerple`, which at eight times the length is ahead of `alibi` and `t5_rpe`, and far ahead '
        'of `fire`. At twice the length `alibi` keeps its loss. Sinusoids that are trained there '
        'are 0 to .02 nats ahead of `alibi` and 0 to .05 behind `cable`. `alibi_pi` without tuning '
        'harms `alibi`.',
        {
            'B1': 'holds', 'B2': 'partly', 'B5': 'holds', 'B6': 'contrary', 'B10': 'partly',
            'B19': 'contrary',
        },
        ('B8', 'B13', 'A13', 'A14', 'C7', 'M2b', 'M3', 'R19', 'R21'),
        '[The table](results/relative_bias.md#language) has all lengths, and encodings that no '
        'claim compares at eight times the length, such as `sandwich` and `cope`.',
        first='On this text no loss falls with a longer window. So the claims show which encodings '
        'are not harmed by one, and not which of them use it.',
    ),
    'Far context helps, and a text is read at up to 64 times its trained length': Need(
        '`cable`, which gains nearly all that there is, or `alibi` or `sandwich`, which gain most '
        'of it and have no parameters. `kerple` gains in two seeds of three, and more up to 16 '
        'times the length. `fire` is behind `alibi`.',
        {'B25': 'holds', 'B26': 'partly', 'B27': 'contrary', 'B28': 'holds', 'B29': 'holds'},
        (),
        '[The table](results/relative_bias.md#listings-in-which-far-context-helps) has all '
        'lengths, and encodings that no claim compares.',
        first='The text is generated: in it names recur with their values.',
    ),
    'A model of text is read within its trained length': Need(
        'What else the model needs may decide, since encodings differ little here: `alibi` is '
        '0.02 nats a byte behind the best of `rope`, `sinusoidal` and `t5_rpe`. A model without '
        'positions learns less in two and in six layers, and nearly as much in twelve.',
        {'B4': 'contrary', 'C14': 'contrary', 'N1': 'holds'},
        ('B16', 'B23', 'C3', 'C5', 'R1', 'M2a'),
    ),
    'A trained model with rotary positions is extended without training': Need(
        '`lm_infinite` where near text is enough: it keeps the loss at 16 times the length. Where '
        'all tokens have to be seen, `dca` up to four times the length; at 32 times it costs more '
        'than 0.1 nats a byte. `self_extend`, on which there is no claim, costs still less. `gali` '
        'is behind other methods. Factors that are searched for eight times the length need a '
        'tuning.',
        {
            'R28': 'holds', 'R25': 'holds', 'R24': 'contrary', 'R26': 'contrary', 'R10': 'contrary',
        },
        ('R9', 'R22', 'R23', 'R27', 'A35', 'R30'),
        '[The tables](results/pretrained_extension.md#python-source-with-three-seeds) have the '
        'losses.',
        first='On this text no loss falls with a longer window. So the claims show which methods '
        'harm a model least, and not which of them use what is far away.',
    ),
    'A trained model is extended by a short tuning': Need(
        '`yarn`, with the factor of the length that will be read. `abf` is ahead of plain RoPE and '
        'of PI. PI is behind all others after 200 steps.',
        {'R8': 'holds', 'R17': 'holds', 'R4': 'contrary', 'R6': 'contrary', 'R13': 'contrary'},
        ('R7', 'R9', 'R14', 'R18', 'R11', 'R12', 'R15', 'R16', 'A18', 'A20', 'B21'),
        'After 200 steps at four times the length YaRN, ABF, the truncated basis and searched '
        'factors have the same loss, and that of PI still falls. '
        '[The tables](results/pretrained_extension.md#factors-of-4-8-and-16) have the losses.',
        first='On this text no loss falls with a longer window. So the claims show which methods '
        'harm a model least, and not which of them use what is far away.',
    ),
    'Something is looked up in a text that is longer than in training': Need(
        'A layer that scans (`cheems`, or the `gmu` hybrid) below attention without positions. '
        'RoPE in that attention makes recall beyond the trained length worse. With `lm_infinite` '
        'take its five best keys too: without them it loses what lies outside its window. `bam` '
        'with `ssmax` finds more passkeys at 16 times the trained length than `alibi`, `rope` and '
        'no positions, if none of them is extended.',
        {'M5': 'holds', 'M4a': 'contrary', 'R30': 'holds', 'B12': 'holds'},
        ('M4b', 'C6b', 'B20', 'B22', 'A19'),
        '`tape` finds more than RoPE at twice the trained length; at 16 times neither finds '
        'anything. Extensions without tuning find more passkeys than `bam` there: a model of '
        '`rope` with `yarn` of factor 16 nearly all, and a model without positions with a '
        'temperature of 1.5 more than four of five '
        '([table](results/relative_bias.md#passkeys-far-beyond-the-trained-length)).',
    ),
    'Numbers are added or multiplied that are longer than in training': Need(
        '', {}, ('C6a', 'A1', 'A2', 'A3', 'A4', 'A7'),
        'Within the trained length one layer with coupled positions learns sums, and one without '
        'positions does not (A2). Beyond it, with two wide heads, all of five seeds solve sums of '
        'twice the trained length, and none those of four times (A1, '
        '[length_generalisation.md](results/length_generalisation.md)).',
    ),
    'Lists of symbols are copied, sorted or counted that are longer than in training': Need(
        'Randomized positions (`randomized_pe`) or no positions (`nope`) for sorting. For other '
        'formal languages randomized positions gain a little. Attention by location '
        '(`monotonic_location`, variants `onestep` and `monoattn`) for symbols that are copied a '
        'varying number of times.',
        {'A9': 'holds', 'A10': 'holds', 'A31': 'holds', 'A30': 'contrary'},
        ('A29',),
        'The gain of .19 of the symbols in A9 is a mean of six tasks. Sorting alone gains .81, '
        'which is .135 of the mean, and the others gain .01 to .16. In A10 '
        'models without positions lead by sorting alone. '
        'Interpolation with relative attention (A30) copies and looks up in some seeds and fails '
        'in others.',
    ),
    'Functions of numbers outside the trained range': Need(
        '`positional_attention`, where places alone decide what is read, as in cumulative sums. '
        'It needs more layers than standard attention for sorting.',
        {'A28': 'holds', 'A29': 'holds'},
    ),
    'A state is followed: switches, counters, products': Need(
        '`tra` or `path`, which follow switches in texts four times as long as in training; `path` '
        'follows parity as far. On switches `cope` is behind the best of `nope`, `rope` and '
        '`alibi`.',
        {'B14': 'holds', 'C4a': 'holds', 'C4c': 'holds', 'C1': 'contrary'},
        ('C2a', 'C2b', 'C4b'),
        '[The table](results/relative_bias.md#flip-flop-language) has each encoding.',
    ),
    'Decoding takes little memory or time': Need(
        'A cache of first and near tokens (`lm_infinite`) decodes six times as fast behind '
        '32,768 tokens, and forgets the rest. With `duo_attention` half of the heads keep all '
        'keys: nearly twice as fast, with nearly half of the memory.',
        {'R29': 'holds', 'X1': 'holds'},
        ('X2', 'X3', 'X4', 'X5', 'X7', 'A24', 'M5', 'B11', 'B17'),
        '`double_sparsity` at a 16th of keys and channels costs 1.7 nats a token in SmolLM2.',
    ),
    'A source is translated': Need(
        '`gpe` for a model that writes while it reads. `xlpe` is better than sinusoids if the '
        'order of the words in the target is known; `dpe`, which predicts it, gained nothing here.',
        {'A26': 'holds', 'C10': 'holds', 'C9': 'open'},
        ('C15',),
    ),
    'Images are larger, finer or shifted': Need(
        '`polyphase_anchor` for shifts. Where a larger image shows more of the scene and the '
        'answer does not depend on places in the image, `peg` or `mix_ffn`; where it does, or '
        'where the image shows the same scene more finely, a table that is resized '
        '(`learned_grid`).',
        {'S4': 'holds', 'S1': 'open', 'S3': 'open'},
        limits='S1 and S3 are open because each is the mean of both cases, in which the methods '
        'differ in opposite directions; their remarks have the two.',
    ),
    'Images at the trained size, and generators': Need(
        '`learnable_fourier` where the offset of two pixels counts. Contextual terms of `irpe` are '
        'ahead of plain ones for every seed, by .01 to .09.',
        {'C11': 'holds', 'S2': 'open'},
        ('C16', 'A38', 'A39', 'S5'),
    ),
    'Fields: pictures as networks': Need(
        '`spder`, which comes to a far smaller error than `siren` in the same steps; '
        '`bit_plane_inr` where no bit may be wrong. `poly_inr`, `doh` and `recombiner_lpe` are '
        'behind others of equal size.',
        {'S7b': 'holds', 'S10': 'holds', 'S9': 'contrary', 'S11': 'contrary', 'S12': 'contrary'},
        ('S7a', 'S8', 'C12'),
    ),
    'Places on the globe': Need(
        '`geo_sh`, which is the best of five encoders with each of three networks.',
        {'S6': 'open'},
        limits='The claim is open because it also says that a Siren network is better than others, '
        'and another one is as good.',
    ),
    'Points and boxes': Need(
        '',
        others=('S13', 'S14'),
        limits='For boxes four decoder layers find more objects in the mean of three seeds than '
        'one layer with encodings of boxes (`box_pe`) that is used four times. But the seeds of '
        'the one layer differ by .45, and the best of them is ahead of all others. The orders of '
        'points do not differ (S13).',
    ),
    'Graphs': Need(
        '`lcp` for two graphs that eigenvectors and random walks do not tell apart. For counts of '
        'triangles `rwse`, and not `rfp`.',
        {'S15': 'contrary', 'S16': 'holds'},
        ('S17',),
        'S16 is one pair of graphs.',
    ),
    'Signals and snapshots': Need(
        '`reverse_pe` for signals that are longer than in training.', {'A15': 'holds'}, ('C17',)
    ),
}  # fmt: skip


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
    test = f'{claim.how.test} {claim.how.remark}'.strip()
    return [claim.id, f'`{claim.key}`', verdict, effect, test]
