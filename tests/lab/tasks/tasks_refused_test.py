"""What tasks refuse in a spec string and as a task length, and what the message says; the bounds
of annotations are tried in `task_contract_test.py`.
"""

import pytest

from tests.lab.tasks.rows import make

NEXT = 'takes a task that predicts the next token'
REFUSED = {  # spec -> what the message says
    'addition(ids="coupled")': 'needs reverse_output=True or zero_pad=True',
    'addition(index_hints=1)': 'at least 2, or 0 for none, got 1',
    'addition(first_hint="most")': 'has no hints; give index_hints, such as index_hints=102',
    'addition(reverse_output=True, ids="coupled", index_hints=9)': 'no ids for index_hints=9',
    'addition(reverse_output=True, ids="coupled", scratchpad=True)': 'no ids for scratchpad=True',
    'any_order(reverse(ids="plain"))': "the task has ids='plain'; use ids='none'",
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
    'language("shakespeare")': "unknown dataset 'shakespeare'",
    'language(data_dir="/somewhere")': 'comes with Python',
    'language(feature="title")': 'has no features',
    'markov_field(order="near_to_far", ids="none")': "needs ids='grid'",
    'masked_text("pydoc_topic")': "did you mean 'pydoc_topics'",
    'mqar(vocab=63)': 'vocab must be even',
    'mqar(pairs=8, vocab=16)': 'vocab must be even and at least .* = 18',
    'multiplication(digits=2, second=3)': 'of 3 digits cannot be padded to digits=2',
    'multiplication(ids="coupled")': 'needs reverse_output=True and pad_product=True',
    'picture("chna")': "did you mean 'china'",
    'picture("digits", index=1797)': r'must lie in 0 .. 1796, got 1797',
    'picture("china", index=1)': 'chooses one of digits or synthetic',
    'random_spaces(addition(reverse_output=True, ids="coupled"))': "no id .* ids='coupled'",
    'random_spaces(any_order(addition()))': 'AnyOrder supplies no .* put random_spaces inside',
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
    'adition()': 'addition',
}
LENGTHS = {  # spec, length -> what the message says
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


@pytest.mark.parametrize('spec', REFUSED)
def test_options_that_are_refused(spec):
    with pytest.raises((ValueError, FileNotFoundError), match=REFUSED[spec]):
        make(spec)


@pytest.mark.parametrize('spec, length', LENGTHS)
def test_lengths_that_are_refused(spec, length):
    with pytest.raises(ValueError, match=LENGTHS[spec, length]):
        make(spec).dataset(length=length, batch_size=1, seed=0)[0]
