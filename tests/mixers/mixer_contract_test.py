"""Contract tests of mixers: the laws of `posenc_jax.testing.mixers` for every registered mixer that
can be a layer of a model, built from the example on its Card. A new mixer is found in the registry,
and needs no change here. `mixer_models_test.py` runs models of mixers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import posenc_jax as pj
from posenc_jax.language.layer_spec import parse_layer
from posenc_jax.language.spec import build
from posenc_jax.layer.recurrent_mixer import RecurrentMixer
from posenc_jax.protocol.errors import SpecError
from posenc_jax.protocol.registry import entries
from posenc_jax.testing import BrokenLaw, mixers
from posenc_jax.testing.mixers import MODEL
from posenc_jax.testing.subject import LENGTH, ROWS
from tests.mixers.small import Joined, draw, moved

LAYERS = [entry for entry in entries('mixer') if entry.is_layer]
# These read whole rows, later tokens too, so they refuse to decode; their own tests do the rest,
# such as `grit_test.py` for a layer that takes and returns a stream of pairs.
WHOLE = [entry for entry in LAYERS if getattr(entry.build, 'sees_later', False)]
ENTRIES = [entry for entry in LAYERS if entry not in WHOLE]
# Of those of whole rows, the ones that need no grid, points or graph.
ROW_ENTRIES = [*ENTRIES, *(entry for entry in WHOLE if entry.key == 'lightnet_whole')]

# Mixers that are parts of a whole: the specs of layers that need each other, in order.
PARTS = {
    'gmu_hybrid': tuple(f"gmu_hybrid(part='{part}')" for part in ('scan', 'keys', 'cross', 'gmu'))
}

# Options that change how a mixer computes; they keep the laws, too.
OPTIONS = {
    'lavo': 'lavo(slots=4, window=3, learned=True, memory_bias=True)',
    'lightnet': 'lightnet(encoding=md_lrpe(form="cosine", learned=True))',
    'md_tpe': 'md_tpe(shape=(3, 2), terms=2)',
    'rmat': 'rmat(segment=4, chunk=2, slots=3, mix=True, through=True)',
}
OPTION_ENTRIES = [
    dataclasses.replace(entry, card=dataclasses.replace(entry.card, example=OPTIONS[entry.key]))
    for entry in ENTRIES
    if entry.key in OPTIONS
]

# The fast tests run the most expensive laws on this mixer alone.
REPRESENTATIVE = 'cheems'
assert REPRESENTATIVE in {entry.key for entry in ENTRIES}
EXPENSIVE = {'causality', 'gradients', 'bfloat16', 'jit', 'blockwise'}
OF_WHOLE_ROWS = {'roles', 'needs_training', 'padding', 'jit', 'bfloat16'}
named = lambda entry: entry.key + '-options' * (entry in OPTION_ENTRIES)
CASES = [
    pytest.param(entry, law, id=f'{named(entry)}-{law.__name__}')
    for entry in (*ROW_ENTRIES, *OPTION_ENTRIES)
    for law in mixers.LAWS
    if entry not in WHOLE or law.__name__ in OF_WHOLE_ROWS
]
expensive = pytest.mark.full_where(
    condition=lambda entry, mixed=True: entry.key != REPRESENTATIVE or not mixed
)
every_form = pytest.mark.parametrize('entry', [*ENTRIES, *OPTION_ENTRIES], ids=named)
every_option = pytest.mark.parametrize('entry', OPTION_ENTRIES, ids=lambda entry: entry.key)
every_mixer = pytest.mark.parametrize('entry', ENTRIES, ids=lambda entry: entry.key)


def make(entry, seed=0):
    rngs, built = nnx.Rngs(seed), []
    for spec in PARTS.get(entry.key, (entry.card.example,)):
        (node,) = parse_layer(spec).nodes
        built.append(build(node, {**mixers.CONTEXT, 'rngs': rngs}))
    return moved(Joined(built) if entry.key in PARTS else built[0], 0.1, seed + 100)


@pytest.mark.parametrize('entry', WHOLE, ids=lambda entry: entry.key)
def test_mixers_of_whole_rows_refuse_to_decode(entry):
    mixer, tok = make(entry), pj.Tokens.of(length=LENGTH)
    x = draw(4, ROWS, LENGTH, MODEL)
    for call in (
        lambda: mixer.start(ROWS, tok),
        lambda: mixer.fill(x, tok, LENGTH),
        lambda: mixer.step(x[:, :1], tok, None, jnp.int32(0)),
    ):
        with pytest.raises(ValueError, match=f'{entry.key} reads .*cannot decode token by token'):
            call()


# The laws of `posenc_jax.testing.mixers`.


@functools.cache
def subject_of(entry):
    return mixers.Mixed(functools.partial(make, entry), entry.card.promises)


@pytest.mark.full_where(
    condition=lambda entry, law: (
        law.__name__ in EXPENSIVE and (entry.key != REPRESENTATIVE or law.__name__ == 'jit')
    )
)
@pytest.mark.parametrize('entry, law', CASES)
def test_law(entry, law):
    assert law(subject_of(entry)) is None


@pytest.mark.full
def test_the_compiler_needs_memory_linear_in_the_length():
    (entry,) = [entry for entry in ENTRIES if entry.key == REPRESENTATIVE]
    sizes = (
        mixers.traced(make(entry), n).lower().compile().memory_analysis().temp_size_in_bytes
        for n in (1024, 2048)
    )
    assert 1 / np.divide(*sizes) < 2.2


class Forgets(RecurrentMixer):
    """Its steps forget what came before, and a whole pass sums over all documents."""

    def initial(self, batch):
        return jnp.zeros((batch, MODEL))

    def scan(self, x, tok, starts, state):
        real = True if tok.valid is None else tok.valid[..., None]
        return jnp.cumsum(jnp.where(real, x, 0), axis=1), state


@pytest.mark.parametrize(
    'law, said',
    [
        (mixers.decoding, 'steps of 7, 13 and one pass, padded, differ by up to '),
        (mixers.causality, 'an output depends on another document'),
    ],
)
def test_a_mixer_that_breaks_a_law_gets_one_line(law, said):
    with pytest.raises(BrokenLaw, match=said):
        law(mixers.Mixed(lambda seed: Forgets(), None))


@pytest.mark.full
@every_option
def test_steps_and_documents_longer_than_a_piece(entry):
    """A piece is what a mixer computes at once; the backward pass computes it again."""
    subject, length, cut = subject_of(entry), 140, 75
    x, valid = draw(5, ROWS, length, MODEL), np.ones((ROWS, length), bool)
    valid[0, :3] = valid[1, 66:72] = valid[1, -4:] = False
    tok = pj.Tokens.of(segment=np.arange(length)[None] // cut + 0 * valid, valid=valid)
    expected = np.asarray(subject.whole(x, tok))
    mixers.close(np.asarray(subject.pieces(x, tok, (70, 70)))[valid], expected[valid])
    second = pj.Tokens.of(segment=tok.segment * 0, valid=np.roll(valid, -cut, axis=1))
    alone = np.asarray(subject.whole(np.roll(x, -cut, axis=1), second))[:, : length - cut]
    mixers.close(alone[valid[:, cut:]], expected[:, cut:][valid[:, cut:]])
    loss = lambda x: jnp.where(valid[..., None], subject.mixer.whole(x, tok) ** 2, 0).sum()
    slope = np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(x)))
    assert np.isfinite(slope).all() and not slope[~valid].any()


# Spec strings.


@every_mixer
def test_the_example_round_trips(entry):
    parsed = parse_layer(entry.card.example)
    assert str(parse_layer(str(parsed))) == str(parsed)
    assert [node.entry.key for node in parsed.nodes] == [entry.key]


@every_mixer
def test_wrong_specs_are_refused(entry):
    with pytest.raises(SpecError, match=f"{entry.key} has no argument 'nonsense'"):
        parse_layer(f'{entry.key}(nonsense=1)')
    with pytest.raises(SpecError, match=f'{entry.key} replaces attention, so it stands alone'):
        parse_layer(f'{entry.card.example} | rope()')
