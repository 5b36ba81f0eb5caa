"""Parameters find the places of their methods in another model."""

import jax
import numpy as np
import pytest
from flax import nnx

from posenc_jax.lab.model.carried import carried
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.transformer import Transformer, abstract_model
from posenc_jax.protocol.errors import SpecError

SOURCE = dict(kind='encoder_decoder', source_len=16, source_size=7, encoding='cable()')
SIZES = dict(vocab_size=7, train_len=16, layers=2, width=16, heads=2)


def model(**fields):
    return abstract_model(TransformerConfig(**{**SIZES, 'encoding': 'nope()', **fields}))


def shapes(params):
    return {
        jax.tree_util.keystr(path, simple=True, separator='.'): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }


def placed(before, after):
    """The names of the parameters of `before` in `after`, those of encodings alone."""
    found = shapes(carried(model(**before), model(**after)))
    wanted = shapes(carried(model(**after), model(**after)))
    assert all(wanted[name] == shape for name, shape in found.items())
    return {name for name in found if 'shared' in name or 'encodings' in name}


@pytest.mark.parametrize(
    'before, after, names',
    [
        (
            {'encoding': 'ssmax() | cable() | rope()'},
            {'encoding': 'cable() | ssmax() | rope()'},
            {'blocks.0.encodings.1.gain', 'blocks.0.encodings.0.kernel'},
        ),
        (
            {'encoding': 'kerple()'},
            {'encoding': 'learned_absolute(max_len=16) | kerple()'},
            {'shared.1.raw.a', 'shared.1.raw.p'},
        ),
        (
            {'pattern': ('cable() | rope()', 'ssmax() | rope()')},
            {'pattern': ('ssmax() | cable() | rope()', 'ssmax() | rope()')},
            {'blocks.0.encodings.1.kernel', 'blocks.1.encodings.0.gain'},
        ),
        (
            SOURCE | {'source_encoding': 'kerple()'},
            SOURCE | {'source_encoding': 'learned_absolute(max_len=16) | kerple()'},
            {'encoder.shared.1.raw.a', 'blocks.0.encodings.0.kernel'},
        ),
        (
            {'encoding': 'cable() | rope()'},
            {'pattern': ('cable() | rope()', 'ssmax() | cable()')},
            {'blocks.0.encodings.0.kernel', 'blocks.1.encodings.1.kernel'},
        ),
    ],
    ids=[
        'another order',
        'in front of all layers',
        'of a layer type',
        'source',
        'of a new pattern',
    ],
)
def test_every_part_is_found(before, after, names):
    assert names <= placed(before, after)


def test_a_part_without_a_place_is_refused():
    with pytest.raises(SpecError, match='learned_absolute has parameters, and the encoding'):
        carried(model(encoding='learned_absolute(max_len=16) | rope()'), model(encoding='rope()'))


def test_each_layer_keeps_its_parameters_in_a_new_pattern():
    sizes = {**SIZES, 'layers': 6, 'encoding': 'nope()'}
    cfg = TransformerConfig(**sizes, pattern=('rope()', 'nope()'))
    source = Transformer(cfg, rngs=nnx.Rngs(0))
    wanted = model(layers=6, pattern=('nope()', 'rope()', 'nope()', 'nope()', 'rope()', 'nope()'))
    found = carried(source, wanted)
    for layer in range(6):
        own = source.blocks[layer % 2].attention.w_q[...][layer // 2]
        np.testing.assert_array_equal(found['blocks'][layer]['attention']['w_q'], own[None])
    assert shapes(found) == shapes(carried(wanted, wanted))
