"""What compilers say about a kernel, read from their output."""

import dataclasses
import itertools
import operator
import re

# The names of our kernels, the longest first, and the pass of each one.
KERNELS = {
    'attention_backward_queries': 'dq',
    'attention_backward_keys': 'dkv',
    'attention_carries': 'carries',
    'attention': 'forward',
}
# Products on tensor cores: of Hopper, and of earlier GPUs.
_PRODUCT = re.compile(r'\b(HGMMA|QGMMA|IGMMA|HMMA|QMMA|IMMA)\b')
# Copies from the memory of the device to shared memory beside which the program goes on.
_COPY = re.compile(r'\b(LDGSTS|UTMALDG|UBLKCP)\b')
# Reads and writes of the memory of a thread, which has its spilled registers.
_LOCAL = re.compile(r'(?:@!?U?P\d+ )?(LDL|STL)\b')


_WAIT = 8  # instructions, at most, of a loop that waits
# Comparisons that end a loop, and what they add to the number with which they compare.
_ENDS = {'GT': 1, 'LE': 1, 'GE': 0, 'LT': 0, 'NE': 0}


@dataclasses.dataclass(frozen=True)
class OfLoop:
    """The instructions of a GPU's kernel.

    Attributes:
      loop: that a thread runs for one block of keys or queries, in a tile without a mask where
        such tiles have a loop of their own. Those of a loop within count as often as it runs.
      inner: those of them that are in such loops.
      tensor: products on tensor cores among those of `loop`.
      copies: asynchronous copies in the whole kernel.
      other: the same as `loop` for the other tiles, where there are two loops; else `loop`.
      local: those of `loop` that write or read spilled registers.
    """

    loop: int
    inner: int
    tensor: int
    copies: int
    other: int
    local: int


@dataclasses.dataclass(frozen=True)
class OfVisit:
    """The bundles of one visit of a TPU's kernel.

    Attributes:
      bundles: how many run. Those of a loop within count as often as it runs.
      inner: those of them that are in such loops.
      units: for each unit of the core, how many operations they have.
      spills: vectors that they write to memory and read again for lack of registers.
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
    """The loops over blocks in what `nvdisasm -c` prints of a kernel: the innermost ones of those
    with at least a third of the products of the one with the most. Of a loop for tiles that need a
    mask or look-ups and one for all others, the latter runs fewer instructions, and it may have
    fewer products.
    """
    instructions, labels, loops = [], {}, []
    for line in text.splitlines():
        if found := re.match(r'\s*(\.L_\w+):', line):
            labels[found[1]] = len(instructions)
        elif found := re.match(r'\s*/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;', line):
            instructions.append(found[1])
    for end, instruction in enumerate(instructions):
        # Behind a few instructions in which it waits for a copy, a thread jumps back to where it
        # needs the copy. At the end of a kernel there is an instruction that jumps to itself.
        before = labels.get(_target(instructions[end - 1]), end)
        waited = instruction.startswith('BRA') and end - _WAIT <= before < end
        if not waited and (begin := labels.get(_target(instruction), end)) < end:
            loops.append(range(begin, end + 1))
    products = [n for n, instruction in enumerate(instructions) if _PRODUCT.search(instruction)]
    copies = sum(1 for instruction in instructions if _COPY.search(instruction))

    def run(whole) -> dict[int, int]:
        """How often each instruction of a loop runs."""
        times = dict.fromkeys(whole, 1)
        for loop in loops:
            if loop != whole and loop[0] in times and loop[-1] in times:
                leaves = lambda n: labels.get(_target(instructions[n]), 0) > loop[-1]
                guards = [instructions[n] for n in loop if n == loop[-1] or leaves(n)]
                turns = _turns([instructions[n] for n in loop], guards)
                times.update({n: times[n] * turns for n in loop})
        return times

    found = _innermost(loops, products) or [range(0)]
    executed = [(sum(run(loop).values()), loop) for loop in found]
    first = operator.itemgetter(0)
    (loop, whole), (other, _) = min(executed, key=first), max(executed, key=first)
    times = run(whole)
    inner = {n for loop in loops if len(loop) < len(whole) for n in loop if n in times}
    local = [n for n in times if _LOCAL.match(instructions[n])]
    of = lambda numbers: sum(times.get(n, 0) for n in numbers)
    return OfLoop(loop, of(inner), of(products), copies, other, of(local))


def _innermost(parts: list[range], products: list[int]) -> list[range]:
    """The parts with at least a third of the products of the one with the most, without those that
    hold another one of them.
    """
    counts = [sum(n in part for n in products) for part in parts]
    found = [part for part, count in zip(parts, counts) if 3 * count >= max(counts)]
    holds_one = lambda part: any(a != part and a[0] in part and a[-1] in part for a in found)
    return [part for part in found if not holds_one(part)]


def _target(instruction: str) -> str | None:
    """The label to which an instruction jumps. A far one may be written as a call."""
    found = re.search(r'\b(?:BRA|CALL\.REL\.NOINC)\b.*?(\.L_\w+)', instruction)
    return found and found[1]


def _turns(loop: list[str], guards: list[str]) -> int:
    """How often a loop runs that counts from zero to a number; 1 where it does not. `guards` are
    the jumps to its beginning and out of it.
    """
    found = [found[1] for guard in guards if (found := re.match(r'@!?(U?P\d)', guard))]
    name = found[-1] if found else 'none'
    # A test by uniform registers, which all threads share, is moved to the predicate of a thread.
    moved = re.compile(rf'PLOP3\.LUT {name}, .*\b(UP\d)')
    names = [name, *(found[1] for line in loop if (found := moved.match(line)))]
    test = re.compile(
        rf'ISETP\.(\w\w)[.\w]* (?:{"|".join(names)}), U?PT, (U?R\d+)[.\w]*, (0x[0-9a-f]+)'
    )
    tests = [found for line in loop if (found := test.search(line))]
    if not tests or tests[-1][1] not in _ENDS:
        return 1
    comparison, register, bound = tests[-1].groups()
    step = re.compile(rf'(?:U?IADD3|VIADD) {register}, {register}[.\w]*, (0x[0-9a-f]+)')
    steps = [int(found[1], 16) for line in loop if (found := step.search(line))]
    return -(-(int(bound, 16) + _ENDS[comparison]) // (steps[-1] if steps else 1))


_BUNDLE = re.compile(r'\s*(?:0x)?[0-9a-f]+\s+([A-Z]{2})?\s*:((?:\s*>)*)\s*\{(.*)')
_EXIT = re.compile(r'scmp\.ge\.s32\.totalorder %\w+, (\d+) /\* loop exit test \*/')
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
            parts.append(range(begin, next(ends, begin)))
    if not any(n in part for part in parts for n in products):
        raise ValueError('no part with products is skipped')
    visits = [_times(bundles, part) for part in _innermost(parts, products)]
    begin, times = min(visits, key=lambda visit: sum(visit[1].values()))
    depths = [depth.count('>') for _, depth, _ in bundles]
    inner = sum(times[n] for n in times if depths[n] > depths[begin])
    units = _units(use, times)
    spills = units.get('VLOAD:FILL', 0) + units.get('VSTORE:SPILL', 0)
    return OfVisit(sum(times.values()), inner, units, spills)


def _times(bundles, part: range) -> tuple[int, dict[int, int]]:
    """Where a visit begins, and how often each of its bundles runs."""
    # It begins with the test whether there is one, behind the last label.
    begin, end = max(n for n in range(part.start + 1) if bundles[n][0] or n == 0), part.stop
    depths = [depth.count('>') for _, depth, _ in bundles]
    times = dict.fromkeys(range(begin, end), 1)
    for first in times:
        if bundles[first][0] == 'LB':
            loop = [*itertools.takewhile(lambda n: depths[n] >= depths[first], range(first, end))]
            own = [n for n in loop if depths[n] == depths[first]]
            later = [n for n in own[1:] if bundles[n][0] == 'LB']
            loop = range(first, min(later, default=loop[-1] + 1))
            tests = [_EXIT.search(bundles[n][2]) for n in loop if depths[n] == depths[first]]
            turns = next((int(found[1]) for found in tests if found), 1)
            times.update({n: times[n] * turns for n in loop})
    return begin, times


def _units(use: str, times: dict[int, int]) -> dict[str, int]:
    """The operations of each unit in bundles, each of which runs so many times."""
    _, names, _, _, *lines = use.splitlines()
    rows = [[times[n] * int(count) for count in lines[n].split()] for n in times]
    return dict(zip(re.split(r',\s*', names.strip()), map(sum, zip(*rows))))


def last_line(text: str) -> str:
    """The line of a compiler's output that says what is wrong: the last one with an error in it, or
    the last one.
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r'error|exceed|fatal|Check fail', line, re.I)]
    return (errors or lines or ['it says nothing'])[-1][:300]
