import pytest

from configs import default
from posenc_jax.lab.config.overrides import apply_overrides, items_of, replaced
from posenc_jax.protocol.errors import SpecError


def test_strings_take_the_type_of_the_field():
    config = default.get_config()
    changed = apply_overrides(
        config,
        {
            'eval.lengths': '64,128',
            'eval.protocols': '(sliding,)',
            'eval.tokens': '100',
            'extend': 'yarn(factor=4, beta_fast=32)',
            'task': 'copy()',
            'data.data_dir': '7',
        },
    )
    assert changed.eval.lengths == (64, 128) and changed.eval.protocols == ('sliding',)
    assert changed.eval.tokens == 100 and changed.data.data_dir == '7'
    assert changed.extend == 'yarn(factor=4, beta_fast=32)' and changed.task == 'copy()'
    assert config.eval.lengths == () and config.extend == ''
    assert apply_overrides(config, {'eval.lengths': '64'}).eval.lengths == (64,)
    assert apply_overrides(config, {'eval.lengths': [64, 128]}).eval.lengths == (64, 128)
    assert apply_overrides(config, {'eval.lengths': ''}).eval.lengths == ()
    for before in ('', '0,1', '0.25', '0,0.5,1'):
        run = apply_overrides(config, {'eval.depths': before})
        assert apply_overrides(run, {'eval.depths': '0,0.75'}).eval.depths == (0, 0.75)
        assert apply_overrides(run, {'eval.depths': '1'}).eval.depths == (1,)


@pytest.mark.parametrize(
    'name, value, message',
    [
        ('eval.lenghts', '64', "no field 'eval.lenghts'; did you mean 'eval.lengths'"),
        ('eval.length', '64', r"did you mean 'eval.lengths' or 'train.length'\?$"),
        ('evl.lengths', '64', r"no field 'evl.lengths'; did you mean 'eval.lengths'\?$"),
        ('mdel.head_dim', '1', r"no field 'mdel.head_dim'; did you mean 'model.head_dim'\?$"),
        ('mdel.hed_dim', '1', r"no field 'mdel.hed_dim'; did you mean 'model.head_dim'\?$"),
        ('mdel', '1', r"no field 'mdel'; did you mean 'model'\?$"),
        ('optimizer.lr', '1', r"no field 'optimizer.lr'; did you mean 'train.lr'\?$"),
        ('head_dim', '1', r"no field 'head_dim'; did you mean 'model.head_dim'\?$"),
        ('mesh.zzz', '1', "valid: 'mesh.cpu_devices', 'mesh.data', 'mesh.fsdp', 'mesh.sequence', "),
        ('zzz.zzz', '1', "no field 'zzz.zzz'; valid: 'cluster', 'cross', 'data', "),
        ('x' * 5000 + '.lr', '1', r"no field 'x{53}…x{22}.lr'; did you mean 'train.lr'\?$"),
        ('extend.x', '64', r"no field 'extend.x'; did you mean 'extend'\?$"),
        ('eval.tokens', 'many', "eval.tokens='many' is not of type int"),
        ('eval.tokens', '1.5', 'not of type int'),
        ('eval.tokens', 'True', 'not of type int'),
        ('eval.protocols', '1,2', 'not of type tuple'),
        ('eval.lengths', 64, 'not of type tuple'),
        (
            'model.width',
            '32',
            'belongs to the checkpoint; an evaluation can change data, eval, extend, mesh, task',
        ),
        ('eval', '64', 'eval is a group of fields'),
    ],
)
def test_wrong_overrides(name, value, message):
    with pytest.raises(SpecError, match=message):
        apply_overrides(default.get_config(), {name: value})


@pytest.mark.parametrize(
    'text, items',
    [
        ('', ()),
        ('()', ()),
        ('64', (64,)),
        ('64, 128', (64, 128)),
        ('[64,128]', (64, 128)),
        ('((64, 128))', (64, 128)),
        ('((2,8,2,2,"peg()"),)', ((2, 8, 2, 2, 'peg()'),)),
        ('(2,8,2,2,"peg()"),', ((2, 8, 2, 2, 'peg()'),)),
        ('[(2,8,2,2,"peg()")]', ((2, 8, 2, 2, 'peg()'),)),
        ('((2, 8), (4, 9))', ((2, 8), (4, 9))),
        ("('sliding',)", ('sliding',)),
        ('alibi(), nope()', ('alibi()', 'nope()')),
        ('rope(freqs=yarn(a=1, b=2), c=3), nope()', ('rope(freqs=yarn(a=1, b=2), c=3)', 'nope()')),
    ],
)
def test_items(text, items):
    assert items_of(text) == items


@pytest.mark.parametrize(
    'name, text',
    [
        ('eval.at_end', 'y' * 100),
        ('eval.batch', '9' * 5000),
        ('eval.batch', '1e400'),
        ('eval.batch', ''),
        ('eval.batch', '(' * 5000),
        ('train.lr', '0x' + 'f' * 3000),
        ('train.lr', 'a\nb'),
        ('x' * 3000, '1'),
    ],
)
def test_long_and_strange_texts_are_one_short_line(name, text):
    with pytest.raises(SpecError) as error:
        replaced(default.get_config(), {name: text})
    assert len(str(error.value).splitlines()) == 1 and len(str(error.value)) < 400


@pytest.mark.parametrize('text', ['True', 'true', 'TRUE'])
def test_words_for_true(text):
    changed = replaced(default.get_config(), {'model.tie': text, 'eval.at_end': 'false'})
    assert changed.model.tie is True and changed.eval.at_end is False
