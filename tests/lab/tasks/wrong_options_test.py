"""Options and task lengths that a task refuses, with what it says of them."""

import pytest

from posenc_jax.lab.tasks.any_order import AnyOrder
from posenc_jax.lab.tasks.arithmetic import Addition, Multiplication, RandomSpaces, Sums
from posenc_jax.lab.tasks.chomsky15 import Chomsky15
from posenc_jax.lab.tasks.copy import Copy, Reverse, SelectiveCopy
from posenc_jax.lab.tasks.formal import BucketSort, Counting, FlipFlop, Parity, Scan, WordProblem
from posenc_jax.lab.tasks.globe import Checkerboard, LandOrOcean
from posenc_jax.lab.tasks.graphs import BlindPairs, Communities, EdgeLists, Triangles
from posenc_jax.lab.tasks.grid import MarkovField, Minesweeper
from posenc_jax.lab.tasks.images import Blobs, Quadrant, Textures
from posenc_jax.lab.tasks.impact_pe import ImpactPE
from posenc_jax.lab.tasks.language import Language, MaskedText, Tipa
from posenc_jax.lab.tasks.pictures import BitPlanes, Picture
from posenc_jax.lab.tasks.points import Shapes
from posenc_jax.lab.tasks.retrieval import (
    MQAR,
    CodeMixed,
    KVRetrieval,
    KVSlots,
    Passkey,
    Passkeys,
    PasskeyText,
    RulerLite,
)
from posenc_jax.lab.tasks.source_target import SourceTarget
from posenc_jax.lab.tasks.translation import Translation

NAN = float('nan')
ids = "did you mean 'coupled'"
TEXTS = {  # the prompts and what changes them
    Addition: [
        (dict(ids='copled'), ids),
        (dict(ids='coupled'), 'reverse_output=True or zero_pad=True'),
        (dict(index_hints=1), 'at least 2, or 0 for none, got 1'),
    ],
    AnyOrder: [
        (dict(task=Reverse(), order='fractl'), "did you mean 'fractal'"),
        (dict(task=Reverse(), curriculum=-1), 'curriculum must be at least 0, got -1'),
        (dict(task=Reverse(ids='plain')), "the task has ids='plain'; use ids='none'"),
    ],
    BucketSort: [
        (dict(ids='coupled'), "ids is 'coupled'; valid: 'none', 'plain'"),
        (dict(symbols=0), 'symbols must be at least 1, got 0'),
    ],
    Chomsky15: [
        (dict(name='parity_check', readout='clas'), "readout is 'clas'; did you mean 'class'"),
        (dict(name='reverse'), "did you mean 'reverse_string'"),
    ],
    CodeMixed: [
        (dict(letters=0), 'letters must be at least 1'),
        (dict(switches=0), 'switches must be at least 1'),
        (dict(ids='switch'), "did you mean 'switches'"),
    ],
    Copy: [(dict(symbols=0), 'symbols must be at least 1, got 0'), (dict(ids='couple'), ids)],
    Counting: [
        (dict(full='reset'), "full is 'reset'; did you mean 'set'"),
        (dict(full='redraw', passes=0.0, sets=0.0), 'draws nothing but incr'),
        (dict(variables=0), 'variables must be at least 1 and at most 26, got 0'),
        (dict(variables=27), 'at least 1 and at most 26, got 27'),
        (dict(passes=1.5), 'passes must be at least 0 and at most 1, got 1.5'),
        (dict(sets=-0.5), 'sets must be at least 0 and at most 1, got -0.5'),
    ],
    FlipFlop: [(dict(ignore=1.2), 'ignore must be at least 0 and at most 1, got 1.2')],
    ImpactPE: [
        (dict(name='copi'), "name is 'copi'; did you mean 'copy'"),
        (dict(name='sum', symbols=9), 'sum has no symbols .*: copy, .*sort_single, pcfg'),
        (dict(name='copy', symbols=101), 'symbols of copy are 1 to 100, got 101; nearest: 100'),
        (dict(name='copy_replace', symbols=1), 'are 2 to 100, got 1; nearest: 2'),
        (dict(name='sum', permute_clauses=True), 'permute_clauses is an option of lego'),
        (dict(name='reverse', scratchpad='full'), "reverse has no scratchpad.* use 'none', or one"),
        (dict(name='sum', scratchpad='i1_c1'), "as in 'i1_c1_o1_v1_r1'"),
        (dict(name='sum', scratchpad='i0_c0_o0_v0_r0'), "writes no part of a step; use 'none'"),
        (dict(name='lego', scratchpad='i1_c1_o1_v1_r0'), "nearest scratchpad: 'i1_c1_o1_v0_r0'"),
    ],
    KVRetrieval: [(dict(depth=-0.5), 'depth must be at least 0 and at most 1, got -0.5')],
    KVSlots: [
        (dict(words=0), 'words must be at least 1, got 0'),
        (dict(slot=-1), 'slot must be at least 0, got -1'),
        (dict(skew=NAN), 'skew must be a finite number of 32 bits'),
        (dict(ids='location'), "did you mean 'locations'"),
    ],
    MarkovField: [
        (dict(order='near'), 'near_to_far'),
        (dict(order='near_to_far', ids='none'), "needs ids='grid'"),
        (dict(states=1), 'states must be at least 2 and at most 64, got 1'),
        (dict(coupling=NAN), 'coupling must be a finite number'),
    ],
    Minesweeper: [
        (dict(mines=1.5), 'mines must be .* at most 1, got 1.5'),
        (dict(ids='couple'), ids),
    ],
    MQAR: [
        (dict(pairs=0), 'pairs must be at least 1'),
        (dict(vocab=63), 'vocab must be even'),
        (dict(pairs=8, vocab=16), 'vocab must be even and at least .* = 18'),
        (dict(power=0.0), 'power must be positive, got 0.0'),
        (dict(power=float('inf')), 'power must be a finite number'),
    ],
    Multiplication: [
        (dict(second=-1), 'second must be at least 0, got -1'),
        (dict(digits=2, second=3), 'second number of 3 digits cannot be padded to digits=2'),
        (dict(ids='coupled'), 'needs reverse_output=True and pad_product=True'),
    ],
    Parity: [(dict(ids='couple'), ids)],
    Passkey: [
        (dict(depth=1.5), 'depth must be at least 0 and at most 1, got 1.5'),
        (dict(digits=0), 'digits must be at least 1, got 0'),
        (dict(lm_weight=-1.0), 'lm_weight must be at least 0, got -1.0'),
    ],
    Passkeys: [(dict(words=0), 'words must be at least 1, got 0')],
    PasskeyText: [
        (dict(depth=1.5), 'at most 1, got 1.5'),
        (dict(digits=0), 'digits must be at least 1'),
    ],
    RandomSpaces: [
        (dict(task=Addition(), most=-1), 'most must be at least 0, got -1'),
        (dict(task=Addition(), law='poisson'), "law is 'poisson'; valid: 'geometric', 'uniform'"),
    ],
    RulerLite: [
        (dict(name='niah'), "name is 'niah'; did you mean 'niah_single'"),
        (dict(name='niah_single', needles=3), 'fixed number of hidden lines.* niah_multikey, '),
        (dict(name='niah_multikey', needles=1), 'needles must be at least 2 and at most 64, got 1'),
        (dict(name='freq_words', values='uuids'), 'no needles; values and haystack are options'),
        (dict(name='niah_single', haystack='essays'), "haystack is 'essays'; "),
        (dict(name='common_words', depth=0.5), 'asks about the whole text.* leave depth out'),
        (dict(name='niah_single', depth=1.5), 'depth must be at least 0 and at most 1, got 1.5'),
    ],
    Scan: [(dict(layout='rows'), "layout is 'rows'; did you mean 'row'")],
    SelectiveCopy: [
        (dict(symbols=0), 'symbols must be at least 1, got 0'),
        (dict(blanks=-1.0), 'blanks must be at least 0 and at most 1024.*, got -1.0'),
        (dict(blanks=2000.0), 'at most 1024.*, got 2000.0'),
    ],
    SourceTarget: [
        (dict(name='recopi'), "name is 'recopi'; did you mean 'recopy'"),
        (dict(name='recopy', layout='sources'), "layout is 'sources'; did you mean 'source'"),
    ],
    Sums: [(dict(operands=1), 'operands must be at least 2, got 1'), (dict(ids='couple'), ids)],
    Tipa: [
        (dict(form='map'), "did you mean 'mapping'"),
        (dict(size=20), 'vocabulary of at least .* got 20'),
        (dict(size=10**6), 'vocabulary of at most'),
        (dict(most=2), 'characters of the longest token, got 2'),
    ],
    Translation: [
        (dict(words=0), 'multiple of 8, got 0; nearest: 8'),
        (dict(words=12), 'multiple of 8, got 12; nearest: 8'),
        (dict(words=31), 'multiple of 8, got 31; nearest: 24'),
        (dict(seed=-1), 'seed must be at least 0'),
    ],
    WordProblem: [
        (dict(group='s6'), "group is 's6'; did you mean 's"),
        (dict(group='a5', scored='lst'), "scored is 'lst'; did you mean 'last'"),
    ],
}
DATA = {  # text, images, clouds of points, graphs and fields
    BitPlanes: [
        (dict(inner=Reverse()), 'takes a picture, .* got Reverse'),
        (dict(inner=Picture('synthetic', bits=8)), 'without bits'),
        (dict(inner=Picture('synthetic'), bits=12), 'bits must be 8 or 16, got 12|bits is 12'),
        (dict(inner=Picture('synthetic'), grid='end'), "'end'.*did you mean 'ends'"),
    ],
    BlindPairs: [(dict(pair='rook'), 'rook_shrikhande'), (dict(features='lcpp()'), 'lcp')],
    Blobs: [
        (dict(directions=1), 'directions must be at least 2 and at most 64, got 1'),
        (dict(noise=-1.0), 'noise must be at least 0, got -1.0'),
    ],
    Checkerboard: [
        (dict(support=21), 'support must be even.*got 21; nearest: 22'),
        (dict(support=0), 'nearest: 2$'),
        (dict(support=1000000), 'nearest: 65536'),
        (dict(support=4, classes=5), 'classes must lie in 1 .. 4'),
        (dict(samples=0), 'samples must be at least 1 and at most 4194304, got 0'),
        (dict(seed=-1), 'seed must be at least 0 and at most 4294967294, got -1'),
    ],
    Communities: [(dict(groups=1), 'at least 2'), (dict(inside=1.5), 'at most 1, got 1.5')],
    EdgeLists: [({}, 'needs a folder'), (dict(folder='x', part='tests'), "did you mean 'test'")],
    LandOrOcean: [
        (dict(globe=-1), 'globe must be at least 0 and at most 4294967295'),
        (dict(degree=41), 'degree must be at least 0 and at most 40, got 41'),
        (dict(coast=0.0), 'coast must be positive and at most 90, got 0.0'),
        (dict(islands=201), 'islands must be at least 0 and at most 200'),
    ],
    Language: [
        (dict(dataset='pydoc_topic'), "did you mean 'pydoc_topics'"),
        (dict(dataset='stdlib'), "'stdlib_code'"),
        (dict(dataset='text:'), "'text:GLOB'"),
        (dict(dataset='shakespeare'), "unknown dataset 'shakespeare'"),
        (dict(packing='docs'), 'packing'),
        (dict(data_dir='/somewhere'), 'comes with Python'),
        (dict(feature='title'), 'has no features'),
    ],
    MaskedText: [
        (dict(rate=0.0), 'above 0 and at most 1, got 0.0'),
        (dict(rate=1.5), 'above 0 and at most 1, got 1.5'),
        (dict(dataset='pydoc_topic'), "did you mean 'pydoc_topics'"),
    ],
    Picture: [
        (dict(name='chna'), "did you mean 'china'"),
        (dict(name='digits', index=1797), r'must lie in 0 .. 1796, got 1797'),
        (dict(name='china', index=1), 'chooses one of digits or synthetic'),
        (dict(outside=0.5), 'outside must be at least 0 and below 0.5, got 0.5'),
        (dict(bits=17), 'bits must be at least 0 and at most 16, got 17'),
    ],
    Quadrant: [
        (dict(larger='sharp'), "larger is 'sharp'"),
        (dict(aspect=0.0), 'aspect must be positive, got 0.0'),
    ],
    Shapes: [
        (dict(noise=-1.0), 'noise must be at least 0'),
        (dict(size=0.0), 'size must be positive'),
        (dict(order='hilbrt'), "did you mean 'hilbert'"),
    ],
    Textures: [
        (dict(classes=65), 'classes must be at least 2 and at most 64, got 65'),
        (dict(steepest=0.0), 'steepest must be positive and at most 8, got 0.0'),
    ],
    Triangles: [(dict(degree=0), 'degree must be at least 1'), (dict(most=0), 'most must be')],
}
OPTIONS = [
    (task, options, message)
    for table in (TEXTS, DATA)
    for task, lines in table.items()
    for options, message in lines
]


@pytest.mark.parametrize('task, options, message', OPTIONS)
def test_options_that_are_refused(task, options, message):
    with pytest.raises(ValueError, match=message):
        task(**options)


@pytest.mark.parametrize(
    'task, length, message',
    [
        (Parity(), 0, 'number of bits must be at least 1, got 0'),
        (FlipFlop(), 1, 'number of flip-flop pairs must be at least 2'),
        (Counting(variables=3), 2, 'program with 3 variables must be at least 3'),
        (Chomsky15('odds_first'), 0, 'length of odds_first must be at least 1'),
        (CodeMixed(), 6, 'text with 6 switching points must be at least 7, got 6'),
        (KVSlots(slot=3), 3, 'must be at least 4, got 3'),
        (KVSlots(keys=8), 9, '9 pairs need 9 distinct keys, but there are 8'),
        (KVRetrieval(), 355, 'fixed text of this task in bytes must be at least 356, got 355'),
        (PasskeyText(), 250, 'fixed text of this task in bytes must be at least 251, got 250'),
        (RulerLite('common_words'), 900, r'must be at least \d{4}, got 900'),
        (Minesweeper(), 0, 'side of the board must be at least 1'),
        (MQAR(pairs=4), 14, 'at least 16'),
        (MQAR(pairs=4), 17, r'nearest: \(18, 18\)'),
        (Multiplication(digits=2), 3, 'cannot be padded to digits=2; use at most 2'),
        (Passkey(digits=3), 6, 'passkey of 3 digits must be at least 7, got 6'),
        (Passkeys(), 100, '10 passkeys of 32 words must be at least 659, got 100'),
        (WordProblem('a5'), 0, 'number of elements must be at least 1'),
        (ImpactPE('lego'), 27, 'length of lego is at most 26, the number of variables, got 27'),
        (ImpactPE('lego'), 1, 'length of lego must be at least 2'),
        (ImpactPE('sum'), 0, 'length of sum must be at least 1'),
        (ImpactPE('scan'), 23, 'nearest: 22 or 24'),
        (Scan(), 23, 'no command of SCAN has .* nearest: 22 or 24$'),
        (Scan(), (29, 29), 'no command of SCAN has .* nearest: 28 or 30$'),
        (Scan(), (49, 99), 'no command of SCAN has .* nearest: 48$'),
        (Language(), (4, 8), 'one length at a time.*did you mean 8'),
        (Picture('synthetic'), 0, 'at least 1, got 0'),
        (Picture('synthetic'), 513, 'only 512 pixels'),
        (Quadrant(), (8, 16), r'all images of a batch have one side, got the range \(8, 16\)'),
        (Quadrant(), 0, 'side of an image must be at least 1, got 0'),
        (Quadrant(), 4096, 'at most 2048 pixels, got 4096'),
        (Quadrant(aspect=0.01), 8, r'8 rows have 0 columns with aspect=0.01, but .* 1 \.\.'),
        (Shapes(), 0, 'number of points must be at least 1, got 0'),
        (Triangles(degree=3), 7, 'even number of nodes'),
        (Communities(groups=3), 16, 'nearest'),
        (Checkerboard(), 21, 'an even number .* got 21; nearest: 22'),
        (Checkerboard(), 2**23, f'an even number .* got {2**23}; nearest: {2**22}'),
    ],
)
def test_lengths_that_are_refused(task, length, message):
    with pytest.raises(ValueError, match=message):
        task.width(length)
