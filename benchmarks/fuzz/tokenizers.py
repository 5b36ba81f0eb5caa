"""Tokenizers: random parts in a tokenizer.json, with fields and bytes damaged; then texts are read
and written.
"""

import base64
import json
import pathlib
import random
import shutil
import struct
from typing import Any

from benchmarks.fuzz import safetensors
from benchmarks.fuzz.damage import changed_bytes, changed_json, odd
from benchmarks.fuzz.target import Target
from posenc_jax.lab.tasks.language.vocabulary import Tokens

TEXTS = (
    'a', ' ', 'ab '
              'ba', 'The cat, 12 times:\n\tabba  '
                    'baab.', 'é漢字 \u200d\ufdfa '
                             'İ', 'a' * 500, 'ab' * 200 + 'c', '<s>ab</s><unk>', '\0\x01a', 'ＡＢ①',
)  # fmt: skip
WORDS = (
    '',
    ' ',
    'a',
    'b',
    'ab',
    '▁',
    'Ġ',
    '##',
    '<s>',
    '<unk>',
    'é',
    '漢',
    '\0',
    'x' * 20,
    'x' * 999,
    '{',
    '(?',
    '$A',
)
PATTERNS = (
    '', ' ', 'a', 'ab', '.*', '.+', '\\s+', '\\p{L}+|\\p{N}{1,3}', '(', '[', '(a+)+$', '(a|b|ab)*c',
        '(a*)*', '(?<=a)b', '\\b', '^', '$', '\\G', '(?!)', 'a{1000}',
    '((a{99}){99}){99}', '(?<x>a\\g<x>*b)', '(?i)É', '[^a]', 'a|', '\\', '(?:a?){30}a{30}',
    '(.)\\1', '\\X', '\\p{Foo}', '(' * 500 + ')' * 500,
)  # fmt: skip
VOCABULARY = {
    token: i
    for i, token in enumerate(
        [
            '<unk>',
            '<s>',
            '</s>',
            'a',
            'b',
            'c',
            'ab',
            'ba',
            'abba',
            '▁',
            'Ġ',
            '##a',
            '##b',
            'é',
            'Ã',
            '©',
        ]
    )
}


def mostly(rng: random.Random, good: Any, *others: Any) -> Any:
    """What the package accepts, and now and then something else: most files are to reach the
    library.
    """
    return good if rng.random() < 0.93 else rng.choice(others)


def part(rng: random.Random, kinds: dict[str, Any], inner: str, depth: int = 0) -> dict[str, Any]:
    """A part of a random kind, or a sequence of them."""
    if depth < 3 and rng.random() < 0.25:
        parts = [part(rng, kinds, inner, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 5)))]
        return {'type': 'Sequence', inner: parts * mostly(rng, 1, 30)}
    kind = rng.choice(sorted(kinds))
    return {'type': kind, **{name: make() for name, make in kinds[kind].items()}}


def parts(rng: random.Random) -> dict[str, tuple[str, dict[str, Any]]]:
    """Field of the file -> the name of the parts of a sequence, and what makes the fields of each
    kind.
    """
    flag, word, count = (
        lambda: rng.random() < 0.5,
        lambda: rng.choice(WORDS),
        lambda: mostly(rng, rng.randint(1, 3), 0, 1000, 2**31, 2**60),
    )
    pattern = lambda: {rng.choice(('String', 'Regex')): rng.choice((*PATTERNS, *WORDS))}
    behavior = lambda: rng.choice(
        ('Removed', 'Isolated', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous')
    )
    character, pair = (
        lambda: rng.choice('ab ▁漢'),
        lambda: [word(), mostly(rng, rng.randrange(16), 16, 2**31, 2**32)],
    )
    piece = lambda: rng.choice(
        (
            {'Sequence': {'id': rng.choice('AAAB'), 'type_id': 0}},
            {'SpecialToken': {'id': rng.choice(('<s>', 'x')), 'type_id': 0}},
        )
    )
    text, bos = (
        {'Sequence': {'id': 'A', 'type_id': 0}},
        {'SpecialToken': {'id': '<s>', 'type_id': 0}},
    )
    pieces = lambda: mostly(
        rng,
        rng.choice(([text], [bos, text], [text, bos])),
        [piece() for _ in range(rng.randrange(4))],
    )
    both = lambda: [{'Sequence': {'id': side, 'type_id': 0}} for side in 'AB']
    special = lambda: {
        '<s>': {'id': '<s>', 'ids': mostly(rng, [1], [], [1, 2], [2**31]), 'tokens': ['<s>']}
    }
    replace, byte_level = (
        {'pattern': pattern, 'content': word},
        {'add_prefix_space': flag, 'trim_offsets': flag, 'use_regex': flag},
    )
    metaspace = {
        'replacement': character,
        'prepend_scheme': lambda: rng.choice(('always', 'never', 'first')),
        'split': flag,
    }
    bert = {
        'clean_text': flag,
        'handle_chinese_chars': flag,
        'strip_accents': lambda: rng.choice((None, True, False)),
        'lowercase': flag,
    }
    affixed = {'sep': pair, 'cls': pair}
    plain = lambda *names: dict.fromkeys(names, {})
    return {
        'normalizer': ('normalizers', {
            'BertNormalizer': bert, 'Strip': {'strip_left': flag, 'strip_right': flag},
            'Replace': replace, 'Prepend': {'prepend': word},
            'Precompiled': {'precompiled_charsmap': lambda: charsmap(rng)},
            **plain('StripAccents', 'NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase', 'Nmt', 'ByteLevel'),
        }),
        'pre_tokenizer': ('pretokenizers', {
            'ByteLevel': byte_level, 'CharDelimiterSplit': {'delimiter': character},
            'Metaspace': metaspace, 'Punctuation': {'behavior': behavior},
            'Split': {'pattern': pattern, 'behavior': behavior, 'invert': flag},
            'Digits': {'individual_digits': flag},
            'FixedLength': {'length': count}, **plain('BertPreTokenizer', 'Whitespace',
                'WhitespaceSplit', 'UnicodeScripts'),
        }),
        'post_processor': ('processors', {
            'ByteLevel': byte_level, 'BertProcessing': affixed, 'RobertaProcessing': {**affixed,
                'trim_offsets': flag, 'add_prefix_space': flag},
            'TemplateProcessing': {'single': pieces, 'pair': both, 'special_tokens': special},
        }),
        'decoder': ('decoders', {
            'BPEDecoder': {'suffix': word}, 'ByteLevel': byte_level, 'WordPiece': {'prefix': word,
                'cleanup': flag}, 'Metaspace': metaspace,
            'CTC': {'pad_token': word, 'word_delimiter_token': word, 'cleanup': flag},
            'Replace': replace,
            'Strip': {'content': character, 'start': count, 'stop': lambda: mostly(rng, 0, 1, 5,
                2**60)}, **plain('Fuse', 'ByteFallback'),
        }),
    }  # fmt: skip


def charsmap(rng: random.Random) -> str:
    """A map that replaces 'a', by chance damaged."""
    data = charsmap_of(
        trie(), rng.choice((b'b\0', b'bb\0', 'é'.encode(), b'', b'x' * 5000, b'\xff'))
    )
    if rng.random() < 0.5:
        data = changed_bytes(rng, data, near=20)
    return base64.b64encode(data).decode()[: rng.choice((None, None, None, -1, 5))]


def charsmap_of(units: list[int], texts: bytes) -> bytes:
    return struct.pack(f'<I{len(units)}I', 4 * len(units), *units) + texts


def trie() -> list[int]:
    """The units of a trie of one entry: the children of the root stand at 256 ^ byte, what 'a'
    points to at 512 beside it.
    """
    units = [0] * 1024
    units[0] = 256 << 10
    units[256 ^ ord('a')] = 512 << 10 | 1 << 8 | ord('a')
    units[256 ^ ord('a') ^ 512] = 1 << 31
    return units


def model(rng: random.Random) -> dict[str, Any]:
    word = lambda: mostly(rng, rng.choice((None, '<unk>')), *WORDS[:12])
    flag = lambda: rng.random() < 0.5
    match rng.randrange(6):
        case 0:
            scores = [[token, -float(i)] for token, i in VOCABULARY.items()]
            return {
                'type': 'Unigram',
                'unk_id': mostly(rng, rng.choice((0, 15, None)), 16, 2**40),
                'vocab': scores,
                'byte_fallback': flag(),
            }
        case 1:
            unknown, prefix = mostly(rng, '<unk>', 'x'), rng.choice(('##', '', 'é'))
            longest = mostly(rng, rng.choice((1, 3, 100)), 0, 2**60)
            return {
                'type': 'WordPiece',
                'unk_token': unknown,
                'continuing_subword_prefix': prefix,
                'max_input_chars_per_word': longest,
                'vocab': VOCABULARY,
            }
        case 2:
            return {
                'type': 'WordLevel',
                'unk_token': mostly(rng, '<unk>', 'x'),
                'vocab': VOCABULARY,
            }
    prefix = mostly(rng, rng.choice((None, '')), '##', 'é')
    whole = rng.choice(
        (
            [['a', 'b'], ['b', 'a'], ['ab', 'ba']],
            ['a b', 'b a', 'ab ba'],
            [],
            [['a', 'b'], ['a', 'b']],
        )
    )
    merges = mostly(rng, whole, [['a', '##b']], ['a'])
    return {
        'type': 'BPE', 'dropout': mostly(rng, rng.choice((None, 0.0)), 0.5, 2), 'unk_token': word(),
        'continuing_subword_prefix': prefix,
        'end_of_word_suffix': rng.choice((None, None, '', '</w>')), 'fuse_unk': flag(),
        'byte_fallback': flag(), 'ignore_merges': flag(),
        'vocab': VOCABULARY, 'merges': merges,
    }  # fmt: skip


def tokenizer(rng: random.Random) -> dict[str, Any]:
    made = {
        name: part(rng, kinds, inner) if rng.random() < 0.5 else None
        for name, (inner, kinds) in parts(rng).items()
    }
    strategy = rng.choice(('BatchLongest', {'Fixed': rng.choice((4, 10**6, 2**40, 2**62))}))
    multiple = rng.choice((None, 0, 8, 2**40))
    pad = {
        'strategy': strategy,
        'direction': 'Right',
        'pad_to_multiple_of': multiple,
        'pad_id': 0,
        'pad_type_id': 0,
        'pad_token': '<unk>',
    }
    cut = {
        'direction': 'Right',
        'max_length': rng.choice((0, 1, 8)),
        'strategy': 'LongestFirst',
        'stride': rng.choice((0, 1, 100)),
    }
    flags = ('single_word', 'lstrip', 'rstrip', 'normalized', 'special')
    added = [
        {
            'id': mostly(rng, rng.randrange(16), 16, 2**31, 2**32),
            'content': mostly(rng, rng.choice(('<s>', '</s>', 'a', 'ab')), '', ' ', 'x' * 50),
            **{flag: rng.random() < 0.5 for flag in flags},
        }
        for _ in range(rng.choice((0, 0, 1, 3)))
    ]
    return {
        'version': '1.0',
        'truncation': rng.choice((None, cut)),
        'padding': rng.choice((None, pad)),
        'added_tokens': added,
        **made,
        'model': model(rng),
    }


def prepare(folder: pathlib.Path) -> None:
    """A checkpoint for the tokenizers to stand beside."""
    made = folder.parent / 'checkpoints'
    made.mkdir()
    safetensors.prepare(made)
    shutil.copytree(made / 'gpt2_1', folder, dirs_exist_ok=True)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, 'vocab_size': len(VOCABULARY)}))
    shutil.rmtree(made)


def make(rng: random.Random, good: pathlib.Path, own: pathlib.Path) -> tuple[pathlib.Path, str]:
    shutil.copytree(good, own, dirs_exist_ok=True)
    found: Any = tokenizer(rng)
    for _ in range(rng.choice((0, 0, 0, 0, 0, 0, 1, 2))):
        found = changed_json(rng, found) if isinstance(found, dict) else odd(rng)
    data = json.dumps(found).encode()
    if rng.random() < 0.05:
        data = changed_bytes(rng, data)
    (own / 'tokenizer.json').write_bytes(data)
    return own, json.dumps(
        {name: value for name, value in found.items() if name != 'model'}
    ) if isinstance(found, dict) else str(found)


def read(given: tuple[pathlib.Path, str]) -> None:
    """Every text, also behind one that is refused; the last refusal is the answer."""
    tokens, refused = Tokens(str(given[0])), None
    for text in TEXTS:
        try:
            tokens.decode(tokens.encode(text.encode()))
            tokens.starts(text.encode())
        except ValueError as error:
            refused = error
    if refused is not None:
        raise refused


TARGET = Target(make=make, read=read, prepare=prepare, show=lambda given: given[1])
