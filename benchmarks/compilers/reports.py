"""What compilers say about a kernel, read from their output."""

import dataclasses
import re

# Products on tensor cores: of Hopper, and of earlier GPUs.
_PRODUCT = re.compile(r'\b(HGMMA|QGMMA|IGMMA|HMMA|QMMA|IMMA)\b')
# Copies from the memory of the device to shared memory beside which the program goes on.
_COPY = re.compile(r'\b(LDGSTS|UTMALDG|UBLKCP)\b')


@dataclasses.dataclass(frozen=True)
class OfLoop:
    """The instructions of a GPU's kernel.

    Attributes:
      loop: of one pass over a block; those of inner loops count once.
      inner: those of them that are in inner loops.
      tensor: products of one pass on tensor cores.
      copies: asynchronous copies of the whole kernel.
    """

    loop: int
    inner: int
    tensor: int
    copies: int


@dataclasses.dataclass(frozen=True)
class OfVisit:
    """The bundles of one visit of a TPU's kernel.

    Attributes:
      bundles: how many there are; those of inner loops count once.
      inner: those of them that are in inner loops.
      units: for each unit of the core, how many operations they have.
      spills: vectors that are written to memory and read again for lack of registers.
    """

    bundles: int
    inner: int
    units: dict[str, int]
    spills: int


def resources(text: str) -> dict[str, int]:
    """Registers of a thread, bytes that it spills, and whether products wait for each other
    (`serial`), from what `ptxas -v` prints.

    Raises:
      ValueError: `ptxas` compiled nothing.
    """
    used = re.search(r'Used (\d+) registers', text)
    if used is None:
        raise ValueError(last_line(text))
    spilled = re.search(r'(\d+) bytes spill stores', text)
    return dict(
        registers=int(used[1]),
        spills=int(spilled[1]) if spilled else 0,
        serial=int('instructions are serialized' in text),
    )


def of_loop(text: str) -> OfLoop:
    """The loop over blocks in what `nvdisasm -c` prints of a kernel: of the loops that have the most
    products the shortest.
    """
    instructions, labels, loops = [], {}, []
    for line in text.splitlines():
        if found := re.match(r'\s*(\.L_\w+):', line):
            labels[found[1]] = len(instructions)
        elif found := re.match(r'\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;', line):
            instructions.append(found[1])
    for end, text in enumerate(instructions):
        found = re.search(r'\bBRA\b.*?(\.L_\w+)', text)
        # At the end of a kernel there is an instruction that jumps to itself.
        if found and labels.get(found[1], end) < end:
            loops.append(range(labels[found[1]], end + 1))
    products = {n for n, text in enumerate(instructions) if _PRODUCT.search(text)}
    copies = sum(1 for text in instructions if _COPY.search(text))
    count = lambda loop: sum(n in loop for n in products)
    whole = max(loops, key=lambda loop: (count(loop), -len(loop)), default=range(0))
    within = [loop for loop in loops if loop != whole and loop[0] >= whole.start and len(whole)]
    inner = {n for loop in within if loop[-1] in whole for n in loop}
    return OfLoop(len(whole), len(inner), count(whole), copies)


_BUNDLE = re.compile(r'\s*(?:0x)?[0-9a-f]+\s+([A-Z]{2})?\s*:((?:\s*>)*)\s*\{(.*)')
_SKIP = re.compile(r'sbr\.rel .*target = \$region(\d+)')


def of_visit(text: str, use: str) -> OfVisit:
    """The bundles of a visit: those that a kernel skips where a block of keys is not met.

    Args:
      text: the file `final_bundles` of a kernel.
      use: the file `final_hlo-static-per-bundle-utilization` of it.

    Raises:
      ValueError: no part with products is skipped.
    """
    bundles = [found.groups() for found in map(_BUNDLE.match, text.splitlines()) if found]
    products = [n for n, (_, _, slots) in enumerate(bundles) if 'vmatmul' in slots]
    parts = []
    for begin, (_, _, slots) in enumerate(bundles):
        if found := _SKIP.search(slots):
            region = re.compile(rf'Start(?:/End empty)? region {found[1]}\b')
            ends = (n for n in range(begin + 1, len(bundles)) if region.search(bundles[n][2]))
            part = range(begin, next(ends, begin))
            parts.append((sum(n in part for n in products), -len(part), begin, part.stop))
    if not parts or not max(parts)[0]:
        raise ValueError('no part with products is skipped')
    _, _, begin, end = max(parts)
    # A visit begins with the test whether there is one, behind the last label.
    begin = max(n for n in range(begin + 1) if bundles[n][0] or n == 0)
    depths = [depth.count('>') for _, depth, _ in bundles[begin:end]]
    inner = sum(depth > depths[0] for depth in depths)
    names, units = _units(use, begin, end)
    found = dict(zip(names, units))
    return OfVisit(
        end - begin, inner, found, found.get('VLOAD:FILL', 0) + found.get('VSTORE:SPILL', 0)
    )


def _units(use: str, begin: int, end: int) -> tuple[list[str], list[int]]:
    """The names of the units, and their operations in some bundles."""
    _, names, _, _, *lines = use.splitlines()
    rows = [list(map(int, line.split())) for line in lines[begin:end]]
    return re.split(r',\s*', names.strip()), [sum(column) for column in zip(*rows)]


def last_line(text: str) -> str:
    """The line of a compiler's output that says what is wrong: the last one with an error in it, or
    the last one.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r'error|exceed|fatal|Check fail', line, re.I)]
    return (errors or lines or ['it says nothing'])[-1][:300]
