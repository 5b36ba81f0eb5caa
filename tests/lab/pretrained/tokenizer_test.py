"""Tokenizers that the library behind them does not survive, or that lose the text: one line each,
before it is asked or after.
"""

import base64
import functools
import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from benchmarks.fuzz.target import problem
from benchmarks.fuzz.tokenizers import charsmap_of, trie
from posenc_jax.lab.pretrained import PretrainedError
from posenc_jax.lab.pretrained.charsmap import longest
from posenc_jax.lab.pretrained.tokenizer import Reader, read_tokenizer

BPE = {'type': 'BPE', 'vocab': {'a': 0, 'b': 1, 'ab': 2, 'c': 3}, 'merges': [['a', 'b']]}
UNIGRAM = {'type': 'Unigram', 'unk_id': 0, 'vocab': [['a', -1.0], ['b', -2.0]]}


@pytest.fixture
def read(tmp_path):
    """Reads a tokenizer.json of some fields, and with it a text."""

    def read(text='ab', **fields):
        file = tmp_path / 'tokenizer.json'
        file.write_text(json.dumps({'version': '1.0', 'added_tokens': [], 'model': BPE, **fields}))
        tokenizer = read_tokenizer(file)
        return Reader(tokenizer, 'here').encode(text).ids

    return read


def of(kind, **fields):
    return {'type': kind, **fields}


def replace(pattern, content):
    return of('Replace', pattern=pattern, content=content)


def sequence(*normalizers):
    return of('Sequence', normalizers=list(normalizers))


def precompiled(data):
    return of('Precompiled', precompiled_charsmap=base64.b64encode(data).decode())


def template(*single, special=None):
    return {
        'type': 'TemplateProcessing',
        'single': list(single),
        'pair': [A, {'Sequence': {'id': 'B', 'type_id': 1}}],
        'special_tokens': special or {},
    }


A, S = {'Sequence': {'id': 'A', 'type_id': 0}}, {'SpecialToken': {'id': '<s>', 'type_id': 0}}
GROW = replace({'Regex': 'a*'}, 'x' * 100)


DAMAGED = 'precompiled_charsmap is damaged'
TRIE = f'{DAMAGED}: its trie'
LONGER, SINGLE = 'normalizer can make a text', 'post_processor.single'
REFUSED = {  # field of the file -> message -> what the field has
    'normalizer': {
        # The process is ended by this one, for want of memory.
        f'normalizer.{TRIE} would have 4294967295 bytes': precompiled(b'\xff\xff\xff\xff'),
        # These run for ever, or fill the memory.
        rf'{LONGER} 1.051e\+10 times longer, expected at most 1000 times; .* Replace': sequence(
            *[GROW] * 5
        ),
        rf'{LONGER} 1.074e\+09 times longer': sequence(*[of('ByteLevel')] * 30),
        'normalizer is a sequence of 65, expected at most 64': sequence(*[of('NFC')] * 65),
        rf'{LONGER} 1.02e\+04 times longer': sequence(sequence(GROW), sequence(sequence(GROW))),
        'normalizer.prepend=.*, expected a text of 1 to 1000 characters': of(
            'Prepend', prepend='x' * 1001
        ),
        # The library panics at these.
        f'normalizer.{DAMAGED}': precompiled(b''),
        'normalizer.precompiled_charsmap=None, expected a text': of(
            'Precompiled', precompiled_charsmap=None
        ),
        f'{DAMAGED}: not base64': of('Precompiled', precompiled_charsmap='#'),
        f'{TRIE} would have 0 bytes, expected a multiple of 4 up to 4': precompiled(bytes(8)),
        f'{TRIE} points to unit 255 of 1': precompiled(b'\4\0\0\0' + bytes(4)),
        r"normalizers\[0\].prepend='', expected a text of 1 to": sequence(
            of('Prepend', prepend=''), of('NFD')
        ),
        r"normalizers\[0\].pattern={'String': ''}, expected": sequence(
            replace({'String': ''}, ' '), of('NFD')
        ),
        # What is malformed otherwise.
        "normalizer.type='Lowercas' is not known; did you mean 'Lowercase'": of('Lowercas'),
        r'normalizer.normalizers\[1\]=3, expected an object': sequence(of('NFC'), 3),
        (
            r"normalizer.normalizers\[0\].normalizers\[0\] lacks 'strip_left', expected true or "
            r'false'
        ): sequence(sequence(of('Strip'))),
        'is not a tokenizer: recursion limit': functools.reduce(
            lambda inner, _: sequence(inner), range(100), of('NFC')
        ),
        "normalizer.pattern={'Regex': 3}, expected {'String': TEXT} or {'Regex': TEXT}": replace(
            {'Regex': 3}, ''
        ),
        'is not a tokenizer: Oniguruma error: end pattern with unmatched parenthesis': replace(
            {'Regex': '('}, ''
        ),
        'normalizer.pattern=.* of 1 to 10000 characters': replace({'Regex': 'a' * 10_001}, ''),
    },
    'pre_tokenizer': {
        'pre_tokenizer can make a text': of('Sequence', pretokenizers=[of('ByteLevel')] * 30),
        'pre_tokenizer.length=0, expected a whole number from 1': of('FixedLength', length=0),
        "pre_tokenizer.replacement='ab', expected a text of 1 to 1 characters": of(
            'Metaspace', replacement='ab'
        ),
        "pre_tokenizer.behavior='x', expected 'Removed'": of(
            'Split', pattern={'String': 'a'}, behavior='x', invert=False
        ),
    },
    'post_processor': {
        rf"{SINGLE}\[0\].id='<s>', expected one of the template's special_tokens": template(S),
        r'post_processor.single\[0\].id={}, expected one of the template': template(
            {'SpecialToken': {'id': {}, 'type_id': 0}}
        ),
        rf"{SINGLE} holds the texts \['B'\], expected each of \['A'\] once": template(
            {'Sequence': {'id': 'B', 'type_id': 0}}
        ),
        r'post_processor.single holds the texts \[\], expected each': template(),
        rf"{SINGLE} holds the texts \['A', 'A'\], expected each": template(A, A),
        r"post_processor.sep=\['a', -1\], expected a token and its id": of(
            'BertProcessing', sep=['a', -1], cls=['a', 0]
        ),
    },
    'decoder': {
        'decoder can make a text': of('Sequence', decoders=[GROW] * 5),
        "decoder.word_delimiter_token='', expected a text of 1 to": of(
            'CTC', pad_token='a', word_delimiter_token='', cleanup=True
        ),
        'decoder.stop=1, expected 0': of('Strip', content='a', start=1, stop=1),
    },
    'model': {
        'model=None, expected an object': None,
        "model.type='BEP' is not known; did you mean 'BPE'": of('BEP'),
        'model.merges=3, expected a list': {**BPE, 'merges': 3},
        'is not a tokenizer: Token `z` out of vocabulary': {**BPE, 'merges': [['a', 'z']]},
        r"model.merges\[0\] is \['a', 'b'\], expected the second to begin with '##long'": {
            **BPE,
            'continuing_subword_prefix': '##long',
        },
        "model.continuing_subword_prefix='é', expected ASCII": {
            **BPE,
            'continuing_subword_prefix': 'é',
        },
        r"model.vocab\['a'\]=2147483648, expected a whole number from 0 to 2147483647": {
            **BPE,
            'vocab': {'a': 2**31},
        },
        r"model.vocab\['b'\]=0, expected an id of its own: it is that of 'a'": {
            **BPE,
            'vocab': {'a': 0, 'b': 0},
        },
        'model.dropout=0.5, expected null or 0': {**BPE, 'dropout': 0.5},
        r"model.vocab\[0\] is \['a', nan\], expected a token and its score": {
            **UNIGRAM,
            'vocab': [['a', float('nan')]],
        },
        'is not a tokenizer: Unable to load vocab': {**UNIGRAM, 'unk_id': 7},
    },
    'version': {r"is not a tokenizer: Unknown tokenizer version '\\x00'": '\0'},
    'added_tokens': {r"added_tokens\[0\] lacks 'content'": [{'id': 0}]},
}


@pytest.mark.parametrize(
    'field, message', [(field, message) for field, rows in REFUSED.items() for message in rows]
)
def test_a_tokenizer_is_checked_before_the_library_has_it(read, field, message):
    with pytest.raises(PretrainedError, match=f'tokenizer.json.*{message}') as found:
        read(**{field: REFUSED[field][message]})
    assert problem(found.value) is None


@pytest.mark.parametrize(
    'text, fields, message',
    [
        (
            'ab',
            {'normalizer': replace({'Regex': '.*'}, '')},
            r"here: the tokenizer makes no token of the text 'ab' \(2 characters\), expected at "
            r'least one',
        ),
        ('xyz', {}, "makes no token of the text 'xyz'"),
        (
            'xyz',
            {'model': {**BPE, 'unk_token': '<unk>'}},
            "the tokenizer fails on the text 'xyz': Unk token `<unk>` not found in the vocabulary",
        ),
        # A panic of the library, which no check of the file foresees: the text takes the pattern
        # too many tries.
        (
            'ab' * 40 + ' c',
            {'normalizer': replace({'Regex': '(a|b|ab)*c'}, '')},
            'the tokenizer fails on the text .*: Onig: Regex search error',
        ),
    ],
)
def test_what_goes_wrong_with_a_text_is_said_where_it_is_read(read, text, fields, message):
    with pytest.raises(PretrainedError, match=message) as found:
        read(text, **fields)
    assert problem(found.value) is None


@pytest.mark.parametrize('size', [10**6, 2**40, 2**62])
def test_padding_and_truncation_of_a_file_are_left_out(read, size):
    """With the library's own reader these are a million ids, the end of the process, and a
    panic.
    """
    pad = {
        'strategy': {'Fixed': size},
        'direction': 'Right',
        'pad_to_multiple_of': None,
        'pad_id': 0,
        'pad_type_id': 0,
        'pad_token': 'a',
    }
    cut = {'direction': 'Right', 'max_length': 1, 'strategy': 'LongestFirst', 'stride': 5}
    assert read('abc', padding=pad, truncation=cut) == [2, 3]


def test_whatever_the_library_builds_is_read(tmp_path):
    """One of every part that it has, and the first tokenizers, whose models do not say what they
    are.
    """
    n, p, q, d = normalizers, pre_tokenizers, processors, decoders
    all_of = lambda library, names: [getattr(library, name)() for name in names.split()]
    plain = all_of(n, 'StripAccents NFC NFD NFKC NFKD Lowercase Nmt BertNormalizer Strip')
    words = all_of(
        p, 'BertPreTokenizer Whitespace WhitespaceSplit UnicodeScripts Punctuation Digits'
    )
    charsmap = n.Precompiled(charsmap_of(trie(), b'b\0'))
    around = dict(single='a $A', pair='a $A $B:1', special_tokens=[('a', 0)])
    pair = ('a', 0), ('b', 1)
    strip = d.Strip(' ', 1, 0)
    parts = {
        'normalizer': [
            *plain, n.Replace('a', 'b'), n.Prepend('▁'), n.ByteLevel(), charsmap, n.Sequence(plain)
        ],
        'pre_tokenizer': [
            *words, p.CharDelimiterSplit('x'), p.ByteLevel(), p.Metaspace(),
            p.Split('a', 'isolated'), p.FixedLength(5), p.Sequence(words),
        ],
        'post_processor': [
            q.ByteLevel(), q.BertProcessing(*pair), q.RobertaProcessing(*pair),
            q.TemplateProcessing(**around), q.Sequence([q.ByteLevel()]),
        ],
        'decoder': [
            *all_of(d, 'ByteLevel WordPiece Metaspace CTC BPEDecoder Fuse ByteFallback'),
            d.Replace('a', 'b'), strip, d.Sequence([d.Fuse(), strip]),
        ],
    }  # fmt: skip
    vocabulary = {'a': 0, 'b': 1, '[UNK]': 2}
    all_models = [
        models.BPE(vocabulary, []), models.WordPiece(vocabulary, unk_token='[UNK]'),
        models.WordLevel(vocabulary, unk_token='[UNK]'),
        models.Unigram([('a', -1.0)], unk_id=0, byte_fallback=False),
    ]  # fmt: skip
    made = [(model, {}) for model in all_models] + [
        (all_models[0], {name: part}) for name, each in parts.items() for part in each
    ]
    for model, fields in made:
        tokenizer = Tokenizer(model)
        for name, part in fields.items():
            setattr(tokenizer, name, part)
        tokenizer.add_special_tokens(['<s>'])
        tokenizer.save(str(tmp_path / 'tokenizer.json'))
        found = json.loads((tmp_path / 'tokenizer.json').read_text())
        for kind in (found['model']['type'], None):
            found['model'].pop('type', None) if kind is None else None
            (tmp_path / 'tokenizer.json').write_text(json.dumps(found))
            assert read_tokenizer(tmp_path / 'tokenizer.json').to_str() == tokenizer.to_str(), (
                fields
            )


def test_the_map_of_characters():
    """A trie of one entry, a -> texts[0], as the library reads it."""
    charsmap = lambda units, texts: base64.b64encode(charsmap_of(units, texts)).decode()
    assert (
        normalizers.Precompiled(charsmap_of(trie(), 'bé\0'.encode())).normalize_str('xay') == 'xbéy'
    )
    assert longest(charsmap(trie(), 'bé\0'.encode()), 'here', 'map') == 3
    leaf = trie().index(1 << 31)
    for units, texts, why in (
        (
            [*trie()[:leaf], 1 << 31 | 9, *trie()[leaf + 1 :]],
            b'b\0',
            'its trie points to byte 9 of 2',
        ),
        (
            [*trie()[:leaf], 1 << 31 | 1, *trie()[leaf + 1 :]],
            'é'.encode(),
            'into the middle of a character',
        ),
        (trie()[:-256], b'b\0', 'its trie points to unit'),
        (trie(), b'\xff', 'its texts are not UTF-8'),
    ):
        with pytest.raises(PretrainedError, match=f'here: map is damaged: .*{why}'):
            longest(charsmap(units, texts), 'here', 'map')
    turning = trie()
    turning[256 ^ ord('a')] = ord('a') << 10 | ord('a')  # a node that is its own child
    assert longest(charsmap(turning, b''), 'here', 'map') == 0
