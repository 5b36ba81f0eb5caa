"""What the tests of analyses share: a small model, its layers one after the other, and a report."""

import functools
import json

import jax

import posenc_jax as pj
from tests.small_models import kept_model, small_model

BASE = dict(vocab_size=13, train_len=16, layers=2, width=32, heads=4, kv_heads=2, encoding='rope()')
model_of = functools.partial(small_model, **BASE)  # of its own; keywords change its fields
same_model_of = functools.partial(kept_model, **BASE)  # shared by all tests, never changed


def ids(rows, length, vocabulary=13):
    return jax.random.randint(jax.random.key(1), (rows, length), 0, vocabulary)


def layers_of(model, tokens):
    """Of every layer its encoding, and queries, keys and values before `project`."""
    tok = pj.Tokens.of(length=tokens.shape[1])
    x = model.embed(tokens, model.place(tok))
    for layer_type, block in model.layers():
        encoding = model.encoding(layer_type, block)
        yield encoding, *block.attention.qkv(block.attention_norm(x))
        x = block(x, tok, encoding)


def check_report(analysis, found, folder, *, rows, says=''):
    """The table, and the numbers and the picture that a report writes. Returns the numbers."""
    report = analysis.report(found)
    assert len(report.rows) == rows and says in report.text()
    numbers, picture = report.write(folder)
    assert picture.read_bytes().startswith(b'\x89PNG') and picture.stat().st_size > 1000
    content = json.loads(numbers.read_text())
    assert set(found) <= set(content)
    return content
