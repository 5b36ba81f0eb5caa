"""How many functions a reader passes from a decode step to attention, and from a spec string to its
bias.
"""

import inspect
import os
import sys

import jax.numpy as jnp

import posenc_jax as pj
from posenc_jax.attention.attend import attend
from posenc_jax.lab.decoding.decode import decode_step, init_cache, prefill
from posenc_jax.methods.alibi import alibi_bias
from posenc_jax.protocol.tokens import Tokens
from tests.small_models import small_model

PACKAGE = os.path.dirname(pj.__file__) + os.sep


def functions_up_to(target, call) -> list[str]:
    """The named functions of the package on the stack where `target` is first called, each once."""
    found, wanted = [], inspect.unwrap(target).__code__

    def look(frame, event, _):
        if event == 'call' and frame.f_code is wanted and not found:
            while frame is not None:
                code = frame.f_code
                if code.co_filename.startswith(PACKAGE) and '<' not in code.co_qualname:
                    found.append(code.co_qualname)
                frame = frame.f_back

    sys.setprofile(look)
    try:
        call()
    finally:
        sys.setprofile(None)
    return list(dict.fromkeys(found[::-1]))


def test_a_decode_step_reaches_attention_in_eight_functions():
    sizes = dict(vocab_size=7, train_len=8, layers=1, width=8, heads=2)
    model = small_model(**sizes, encoding='rope()')
    cache = prefill(model, init_cache(model, Tokens.of(length=8)), jnp.array([[1, 2]]))[1]
    passed = functions_up_to(attend, lambda: decode_step(model, cache, jnp.array([1])))
    assert passed[0] == 'decode_step' and passed[-1] == 'attend' and len(passed) <= 8, passed


def test_a_spec_string_reaches_its_bias_in_twelve_functions():
    tok, q = pj.Tokens.of(length=4), jnp.ones((1, 4, 2, 8))

    def bias():
        return pj.attend(pj.make('alibi()', heads=2), q, q, q, tok, tok)

    built = functions_up_to(type(pj.make('alibi()', heads=2)).__init__, bias)
    evaluated = functions_up_to(alibi_bias, bias)
    assert built[0] == 'make' and evaluated[0] == 'attend' and evaluated[-1] == 'alibi_bias'
    assert len(built) + len(evaluated) <= 12, (built, evaluated)
