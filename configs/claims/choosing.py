"""docs/choosing.md: for each need, the methods that a measured claim speaks for or against."""

from collections.abc import Mapping

from configs.claims import page

HEADER = """# Choosing an encoding

`python -m configs.claims` makes this page from the measured claims of [claims.md](claims.md), which
says how every verdict follows. Under each need are the claims that bear on it. What is said of a
method was measured with at least three seeds, in models that are small and trained for minutes.
The last section names the needs about which nothing is measured yet.
"""

# Need -> claims that bear on it.
NEEDS: Mapping[str, tuple[str, ...]] = {
    'A language model reads longer texts than in training, and nothing is trained again': (
        *('B1', 'B2', 'B4', 'B5', 'B6', 'B8', 'B10', 'B13', 'B19', 'B21', 'B22', 'A13', 'A14'),
        *('A20', 'C7', 'M2b', 'M3', 'R19', 'R21'),
    ),
    'A trained model with rotary positions is extended': (
        *('R4', 'R7', 'R8', 'R9', 'R10', 'R13', 'R17', 'R22', 'R23', 'R24', 'R26', 'R28', 'A18'),
    ),
    'Something is looked up in a text that is longer than in training': (
        *('B12', 'B20', 'R30', 'C6b', 'M4a', 'M4b', 'M5', 'A19'),
    ),
    'Numbers or lists of symbols are longer than in training': (
        *('A1', 'A2', 'A3', 'A4', 'A7', 'A9', 'A10', 'A28', 'A30', 'C6a'),
    ),
    'A state is followed: switches, counters, products': ('B14', 'C1', 'C2', 'C4a', 'C4b'),
    'A language model is read within its trained length': (
        *('B23', 'C3', 'C5', 'C14', 'R1', 'N1', 'M2a'),
    ),
    'A source is translated': ('C9', 'C10', 'A26', 'C15'),
    'Signals and snapshots': ('A15',),
    'Images: larger, finer or shifted ones than in training': (
        *('S1', 'S2', 'S3', 'S4', 'C11', 'A38', 'C16'),
    ),
    'Fields and places on the globe': ('S6', 'S7a', 'S7b', 'S8', 'S9', 'S10', 'S11', 'S12', 'C12'),
    'Points and boxes': ('S13', 'S14'),
    'Graphs': ('S15', 'S16', 'S17', 'C13'),
}


def markdown(claims: page.Claims, records: page.Records) -> str:
    """The whole page."""
    verdicts = page.measured(claims, records)
    parts, empty = [HEADER], []
    for need, ids in NEEDS.items():
        known = [claims[name] for name in ids if name in claims]
        done = [claim for claim in known if claim.id in verdicts]
        if not done:
            empty.append(need)
            continue
        parts.append(f'\n## {need}\n')
        named = lambda *wanted: ', '.join(
            dict.fromkeys(f'`{claim.key}`' for claim in done if verdicts[claim.id] in wanted)
        )
        for words, wanted in (
            ('for', ('holds', 'partly')),
            ('against', ('contrary',)),
            ('on neither side', ('open',)),
        ):
            if found := named(*wanted):
                parts.append(f'- The measurements speak {words}: {found}.')
        parts += ['', page.measured_table(done, records, verdicts)]
        if left := [claim.id for claim in known if claim.id not in verdicts]:
            parts.append(f'\nNot measured yet: {", ".join(left)}.')
    if empty:
        parts += ['\n## Nothing measured yet\n', *(f'- {need}' for need in empty)]
    return '\n'.join(parts) + '\n'
