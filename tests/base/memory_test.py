"""Sizes beyond what is accepted are refused before anything of that size is there, for every
registered call.
"""

import time
import tracemalloc
import typing

import jax
import pytest
from flax import nnx

import posenc_jax as pj
import posenc_jax.lab.tasks  # noqa: F401  (registers the tasks)
from posenc_jax.base.memory import bytes_of, main_memory, readable
from posenc_jax.language import spec as spec_language
from posenc_jax.language.spec import MAX_BYTES
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import entries

SIZES = dict(heads=2, kv_heads=2, head_dim=8, model_dim=16, train_len=16)
HUGE = (2**31 - 1, 2**30)


def calls():
    """Every call with one whole number that is huge; what else it needs is as in its example, or
    small.
    """
    for entry in entries():
        target = entry.build.__init__ if isinstance(entry.build, type) else entry.build
        hints = typing.get_type_hints(target) if entry.parameters else {}
        needed = [n for n, p in entry.parameters.items() if p.default is p.empty]
        for name in entry.parameters:
            if int in (hints.get(name), *typing.get_args(hints.get(name))):
                small = {n: {int: 4, float: 2.0}.get(hints[n]) for n in needed if n != name}
                if None not in small.values():
                    yield pytest.param(entry, name, small, id=f'{entry.kind}-{entry.key}-{name}')


def build(entry, spec):
    """Builds a call as shapes: what does not depend on them, on the host, is there all the same."""

    def made():
        given = dict(SIZES, features=4, components=2, outputs=2, rngs=nnx.Rngs(0))
        if entry.kind == 'extension':
            given['encoding'] = pj.make('rope()', **SIZES)
        (node,) = spec_language.parse(spec, (entry.kind,)).nodes
        given = {name: value for name, value in given.items() if name not in node.arguments}
        return (
            nnx.state(built)
            if isinstance(built := spec_language.build(node, given), nnx.Module)
            else ()
        )

    jax.eval_shape(made)


@pytest.mark.full_but_one
@pytest.mark.parametrize('entry, name, small', calls())
def test_huge_sizes_are_refused_before_they_are_there(entry, name, small):
    for size in HUGE:
        arguments = ', '.join(f'{n}={value}' for n, value in {**small, name: size}.items())
        tracemalloc.start()
        began = time.process_time()
        try:
            build(entry, f'{entry.key}({arguments})')
        except SpecError as error:
            assert len(str(error).splitlines()) == 1 and len(str(error)) < 1000
        finally:
            _, peak = tracemalloc.get_traced_memory()
            tracemalloc.stop()
        assert peak < 2**26, f'{readable(peak)} on the host'
        assert time.process_time() - began < 20


@pytest.mark.parametrize(
    'spec, needed',
    [
        ('cope(npos=1000000000)', '29.8 GiB'),
        ('learned_absolute(max_len=2000000000)', '119 GiB'),
        ('position_coupling(max_position=100000000)', '5.96 GiB'),
        ('fire(width=100000000)', '1.49 GiB'),
        ('rcmha(max_len=100000000)', '6.71 GiB'),
        ('positional_attention(max_len=100000)', '149 GiB'),
        (
            'rope() | per_head(first=nope(), second=cope(npos=1000000000), heads_of_first=1)',
            '29.8 GiB',
        ),
    ],
)
def test_the_message_says_what_it_would_take(spec, needed):
    with pytest.raises(
        SpecError,
        match=f'would take {needed}, and at most 1 GiB are accepted; make one of its sizes '
        'smaller: .*0000',
    ):
        pj.make(spec, **SIZES)


def test_what_is_accepted_is_what_the_shapes_say():
    """The estimate that decides whether shapes are looked at is never below the bytes of small
    calls.
    """
    rows = MAX_BYTES // 4 // 16
    with pytest.raises(SpecError, match='would take 1 GiB'):
        pj.make(f'learned_absolute(max_len={rows + 1})', model_dim=16)
    assert (
        bytes_of(
            jax.eval_shape(
                lambda: pj.make(f'learned_absolute(max_len={rows})', model_dim=16).vectors[...]
            )
        )
        == MAX_BYTES
    )


@pytest.mark.parametrize(
    'spec, size', [('alibi()', 'heads'), ('rope()', 'head_dim'), ('cable()', 'model_dim')]
)
def test_no_model_is_that_wide(spec, size):
    message = f'{size} must lie in 1 .. 1048576, got 1073741824'
    with pytest.raises(SpecError, match=message):
        pj.make(spec, **{**SIZES, 'kv_heads': 1, size: 2**30})
    with pytest.raises(SpecError, match=message):
        pj.make(
            spec.replace('()', f'({size}={2**30})'),
            **{name: value for name, value in SIZES.items() if name != size},
        )


def test_main_memory_is_that_of_this_machine():
    with open('/proc/meminfo') as file:
        assert abs(main_memory() - 1024 * int(file.readline().split()[1])) < 2**20
