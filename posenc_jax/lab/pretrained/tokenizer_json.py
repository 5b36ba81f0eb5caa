"""Checks the contents of a tokenizer.json.

The library `tokenizers` accepts some files that stop the process or make it run for ever. So every
part of a file is compared with its kind first. A field is optional here if it is optional for the
library.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from posenc_jax.lab.pretrained.charsmap import longest
from posenc_jax.lab.pretrained.fields import (
    FLAG,
    LIST,
    OBJECT,
    Kind,
    PretrainedError,
    check,
    maybe,
    number,
    one_of,
    several,
    shown,
    text,
    whole,
)  # fmt: skip
from posenc_jax.protocol.errors import nearest

# The largest factor by which one of the PARTS may lengthen a text.
GROWTH = 1000
MOST_PARTS = 64  # of a sequence, or of a template
LONGEST_PATTERN = 10_000
CHARACTER, WORD, PATTERN_TEXT = text(1, 1), text(1000), text(LONGEST_PATTERN, 1)
ID = whole(0, 2**31 - 1)
BEHAVIOR = one_of('Removed', 'Isolated', 'MergedWithPrevious', 'MergedWithNext', 'Contiguous')
PAIR = Kind(
    'a token and its id',
    lambda v: isinstance(v, list) and len(v) == 2 and WORD.holds(v[0]) and ID.holds(v[1]),
)


def _pattern(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and len(value) == 1
        and all(k in ('String', 'Regex') and PATTERN_TEXT.holds(v) for k, v in value.items())
    )


# Patterns and prepended texts may not be empty: with an empty one the library panics on some texts.
PATTERN = Kind(
    f"{{'String': TEXT}} or {{'Regex': TEXT}} of 1 to {LONGEST_PATTERN} characters", _pattern
)
_REPLACE = {'pattern': PATTERN, 'content': WORD}
_BYTE_LEVEL = {'add_prefix_space?': FLAG, 'trim_offsets?': FLAG, 'use_regex?': FLAG}
_METASPACE = {
    'replacement': CHARACTER,
    'prepend_scheme?': one_of('always', 'never', 'first'),
    'split?': FLAG,
    'add_prefix_space?': maybe(FLAG),
}

# The fields of every type of a part of the file. Names with '?' are optional.
NORMALIZERS: dict[str, dict[str, Kind]] = {
    'BertNormalizer': {
        'clean_text': FLAG,
        'handle_chinese_chars': FLAG,
        'strip_accents?': maybe(FLAG),
        'lowercase': FLAG,
    },
    'Strip': {'strip_left': FLAG, 'strip_right': FLAG},
    'Precompiled': {'precompiled_charsmap': text(2**24)},
    'Replace': _REPLACE,
    'Prepend': {'prepend': text(1000, 1)},
    **dict.fromkeys(
        ('StripAccents', 'NFC', 'NFD', 'NFKC', 'NFKD', 'Lowercase', 'Nmt', 'ByteLevel'), {}
    ),
}
PRE_TOKENIZERS: dict[str, dict[str, Kind]] = {
    'ByteLevel': _BYTE_LEVEL,
    'CharDelimiterSplit': {'delimiter': CHARACTER},
    'Metaspace': _METASPACE,
    'Split': {'pattern': PATTERN, 'behavior': BEHAVIOR, 'invert': FLAG},
    'Punctuation': {'behavior?': BEHAVIOR},
    'Digits': {'individual_digits': FLAG},
    'FixedLength': {'length': whole(1, 2**31 - 1)},
    **dict.fromkeys(('BertPreTokenizer', 'Whitespace', 'WhitespaceSplit', 'UnicodeScripts'), {}),
}
POST_PROCESSORS: dict[str, dict[str, Kind]] = {
    'RobertaProcessing': {'sep': PAIR, 'cls': PAIR, 'trim_offsets': FLAG, 'add_prefix_space': FLAG},
    'BertProcessing': {'sep': PAIR, 'cls': PAIR},
    'ByteLevel': _BYTE_LEVEL,
    'TemplateProcessing': {'single': LIST, 'pair': LIST, 'special_tokens': OBJECT},
}
DECODERS: dict[str, dict[str, Kind]] = {
    'BPEDecoder': {'suffix': WORD},
    'ByteLevel': _BYTE_LEVEL,
    'WordPiece': {'prefix': WORD, 'cleanup': FLAG},
    'Metaspace': _METASPACE,
    # An empty delimiter would stand between all characters, in each of the parts again.
    'CTC': {'pad_token': WORD, 'word_delimiter_token': text(1000, 1), 'cleanup': FLAG},
    'Replace': _REPLACE,
    'Strip': {
        'content': CHARACTER,
        'start': whole(0, 1000),
        'stop': one_of(0),  # with other values the library panics on short tokens
    },
    **dict.fromkeys(('Fuse', 'ByteFallback'), {}),
}
# Field of the file -> the types that it may have, and the field that holds the parts of a Sequence.
PARTS = {
    'normalizer': (NORMALIZERS, 'normalizers'),
    'pre_tokenizer': (PRE_TOKENIZERS, 'pretokenizers'),
    'post_processor': (POST_PROCESSORS, 'processors'),
    'decoder': (DECODERS, 'decoders'),
}
_AFFIX = maybe(WORD)
MODELS: dict[str, dict[str, Kind]] = {
    'BPE': {
        'vocab': OBJECT,
        'merges': LIST,
        'dropout?': Kind(
            'null or 0, since other values make tokens random',
            lambda value: value is None or type(value) in (int, float) and value == 0,
        ),
        'unk_token?': _AFFIX,
        'continuing_subword_prefix?': _AFFIX,
        'end_of_word_suffix?': _AFFIX,
        **dict.fromkeys(('fuse_unk?', 'byte_fallback?', 'ignore_merges?'), FLAG),
    },
    'WordPiece': {
        'vocab': OBJECT,
        'unk_token': WORD,
        'continuing_subword_prefix': WORD,
        'max_input_chars_per_word': whole(0, 10_000),
    },  # fmt: skip
    'WordLevel': {'vocab': OBJECT, 'unk_token': WORD},
    'Unigram': {'vocab': LIST, 'unk_id?': maybe(ID), 'byte_fallback?': FLAG},
}
_TEMPLATE_TOKEN = {'id': WORD, 'ids': several(ID, MOST_PARTS), 'tokens': several(WORD, MOST_PARTS)}
_ADDED = {
    'id': ID, 'content': text(1000, 1), **dict.fromkeys(('single_word', 'lstrip', 'rstrip',
        'normalized', 'special'), FLAG),
}  # fmt: skip


def check_tokenizer_json(found: Mapping[str, Any], where: object) -> None:
    """Refuses contents of a tokenizer.json that the library might crash or hang on.

    Args:
      found: the contents.
      where: name of the file, for messages.

    Raises:
      PretrainedError: names the field, its value and what was expected.
    """
    for name, (kinds, inner) in PARTS.items():
        if found.get(name) is None:
            continue
        parts = list(_parts(found[name], kinds, inner, where, name))
        if len(parts) > MOST_PARTS:
            raise PretrainedError(
                f'{where}: {name} is a sequence of {len(parts)}, expected at most {MOST_PARTS}'
            )
        if (growth := math.prod(_growth(part, where, field) for field, part in parts)) > GROWTH:
            raise PretrainedError(
                f'{where}: {name} can make a text {growth:.4g} times longer, expected at most '
                f'{GROWTH} times; it consists of '
                f'{" | ".join(dict.fromkeys(part["type"] for _, part in parts))}'
            )
        for field, part in parts:
            if part['type'] == 'TemplateProcessing':
                _check_template(part, where, field)
    _check_model(check(found.get('model'), OBJECT, where, 'model'), where)
    for index, token in enumerate(
        check(found.get('added_tokens', []), LIST, where, 'added_tokens')
    ):
        _check_fields(
            check(token, OBJECT, where, f'added_tokens[{index}]'),
            _ADDED,
            where,
            f'added_tokens[{index}]',
        )


def _parts(
    found: Any, kinds: Mapping[str, Mapping[str, Kind]], inner: str, where: object, field: str
) -> Iterator[tuple[str, dict]]:
    """The parts of a field, including those inside Sequences, each with its place in the file."""
    kind = check(found, OBJECT, where, field).get('type')
    if kind == 'Sequence':
        for index, part in enumerate(check(found.get(inner), LIST, where, f'{field}.{inner}')):
            yield from _parts(part, kinds, inner, where, f'{field}.{inner}[{index}]')
        return
    if not isinstance(kind, str) or kind not in kinds:
        raise PretrainedError(
            f'{where}: {field}.type={shown(kind)} is not known; '
            f'{nearest(str(kind)[:100], (*kinds, "Sequence"))}'
        )
    _check_fields(found, kinds[kind], where, field)
    yield field, found


def _check_fields(
    found: Mapping[str, Any], fields: Mapping[str, Kind], where: object, field: str
) -> None:
    for name, kind in fields.items():
        name, optional = name.removesuffix('?'), name.endswith('?')
        if name in found:
            check(found[name], kind, where, f'{field}.{name}')
        elif not optional:
            raise PretrainedError(f'{where}: {field} lacks {name!r}, expected {kind.says}')


def _growth(part: Mapping[str, Any], where: object, field: str) -> float:
    """The largest factor by which a part can lengthen a text."""
    size = lambda written: len(written.encode(errors='replace'))
    match part['type']:
        case 'Replace':
            ((kind, pattern),) = part['pattern'].items()
            if kind == 'String':
                return max(1.0, size(part['content']) / size(pattern))
            return 1.0 + size(part['content'])  # a regex may match between all characters
        case 'Prepend':
            return 1.0 + size(part['prepend'])  # reached for a text of one character
        case 'Precompiled':
            return max(
                1.0, longest(part['precompiled_charsmap'], where, f'{field}.precompiled_charsmap')
            )
        case 'Metaspace':
            return 1.0 + size(part['replacement'])
        case 'ByteLevel' | 'BertNormalizer':
            return 2.0
    return 1.0


def _check_template(part: Mapping[str, Any], where: object, field: str) -> None:
    """Checks that a template has each text once, and only special tokens that it declares."""
    known = part['special_tokens']
    for name, token in known.items():
        place = f'{field}.special_tokens[{shown(name)}]'
        check(token, OBJECT, where, place)
        _check_fields(token, _TEMPLATE_TOKEN, where, place)
        if token['id'] != name or len(token['ids']) != len(token['tokens']) or not token['ids']:
            raise PretrainedError(
                f'{where}: {place} is {shown(token)}, expected this name as its id, and an id for '
                'each of its tokens'
            )
    listed = Kind(
        "one of the template's special_tokens",
        lambda value: isinstance(value, str) and value in known,
    )
    for side, texts in (('single', ['A']), ('pair', ['A', 'B'])):
        pieces, seen = part[side], []
        if len(pieces) > MOST_PARTS:
            raise PretrainedError(
                f'{where}: {field}.{side} has {len(pieces)} pieces, expected at most {MOST_PARTS}'
            )
        for index, piece in enumerate(pieces):
            place = f'{field}.{side}[{index}]'
            kind, inner = next(iter(check(piece, OBJECT, where, place).items()), (None, None))
            if (
                kind not in ('Sequence', 'SpecialToken')
                or len(piece) != 1
                or not isinstance(inner, dict)
            ):
                raise PretrainedError(
                    f"{where}: {place} is {shown(piece)}, expected a 'Sequence' or a 'SpecialToken'"
                )
            names = one_of('A', 'B') if kind == 'Sequence' else listed
            _check_fields(inner, {'id': names, 'type_id': ID}, where, place)
            seen += [inner['id']] if kind == 'Sequence' else []
        if sorted(seen) != texts:
            raise PretrainedError(
                f'{where}: {field}.{side} holds the texts {shown(seen)}, expected each of '
                f'{texts} once'
            )


def kind_of_model(model: Mapping[str, Any]) -> Any:
    """The type of a tokenizer model. Old files have no type; it follows from the other fields."""
    if 'type' in model:
        return model['type']
    if isinstance(model.get('vocab'), list):
        return 'Unigram'
    return (
        'BPE'
        if 'merges' in model
        else 'WordPiece'
        if 'max_input_chars_per_word' in model
        else 'WordLevel'
    )


def _check_model(model: Mapping[str, Any], where: object) -> None:
    kind = kind_of_model(model)
    if not isinstance(kind, str) or kind not in MODELS:
        raise PretrainedError(
            f'{where}: model.type={shown(kind)} is not known; {nearest(str(kind)[:100], MODELS)}'
        )
    _check_fields(model, MODELS[kind], where, 'model')
    if kind == 'Unigram':
        score = number(-1e30, 1e30)
        for place, entry in enumerate(model['vocab']):
            if not (
                isinstance(entry, list)
                and len(entry) == 2
                and WORD.holds(entry[0])
                and score.holds(entry[1])
            ):
                raise PretrainedError(
                    f'{where}: model.vocab[{place}] is {shown(entry)}, expected a token and its '
                    'score'
                )
        return
    seen: dict[int, str] = {}
    for token, i in model['vocab'].items():
        if not ID.holds(i):
            raise PretrainedError(
                f'{where}: model.vocab[{shown(token)}]={shown(i)}, expected {ID.says}'
            )
        if (other := seen.setdefault(i, token)) is not token:
            raise PretrainedError(
                f'{where}: model.vocab[{shown(token)}]={i}, expected an id of its own: it is '
                f'that of {shown(other)}'
            )
    if kind == 'BPE':
        _check_merges(model, where)


def _check_merges(model: Mapping[str, Any], where: object) -> None:
    prefix = model.get('continuing_subword_prefix') or ''
    if not prefix.isascii():  # the library counts characters but cuts bytes
        raise PretrainedError(
            f'{where}: model.continuing_subword_prefix={shown(prefix)}, expected ASCII'
        )
    for place, merge in enumerate(model['merges']):
        pair = merge.split(' ') if isinstance(merge, str) else merge
        if not (
            isinstance(pair, list)
            and len(pair) == 2
            and all(isinstance(token, str) for token in pair)
        ):
            raise PretrainedError(
                f'{where}: model.merges[{place}] is {shown(merge)}, expected two tokens'
            )
        if not pair[1].startswith(prefix):
            raise PretrainedError(
                f'{where}: model.merges[{place}] is {shown(merge)}, expected the second to begin '
                f'with {shown(prefix)}'
            )
