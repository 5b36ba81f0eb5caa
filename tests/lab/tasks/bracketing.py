"""The orders that a bracketing grammar reaches, by the stack of its blocks."""


def reachable(permutation):
    """Whether an inversion transduction grammar reaches a permutation: blocks of neighbours that
    hold neighbouring numbers are joined until one is left.
    """
    blocks = []
    for number in permutation:
        blocks.append((number, number))
        while len(blocks) > 1:
            (a, b), (c, d) = blocks[-2:]
            if b + 1 != c and d + 1 != a:
                break
            blocks[-2:] = [(min(a, c), max(b, d))]
    return len(blocks) == 1
