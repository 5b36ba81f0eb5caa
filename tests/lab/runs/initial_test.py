"""Training that continues weights which are there: what is taken over, what is trained, what is
refused.
"""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from configs import temperature
from posenc_jax.lab.config import defaults
from posenc_jax.lab.config.overrides import read_overrides, replaced
from posenc_jax.lab.model import Transformer, TransformerConfig
from posenc_jax.lab.pretrained import export_pretrained
from posenc_jax.lab.runs import initial, stored
from posenc_jax.lab.runs.restore import restore_model
from posenc_jax.lab.runs.run import validate
from posenc_jax.lab.train.loop import train
from posenc_jax.protocol.errors import SpecError
from tests.lab.train import tiny

read = jax.jit(lambda model, tokens: model(tokens))
ROPE = dict(encoding='rope()', train__length=16, train__steps=4)
# A step that moves nothing which shows, of the encoding of the source.
UNMOVED = dict(encoding='rope()', train__length=16, train__steps=1, train__lr=1e-9)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    """A run of four steps at length 16."""
    return train(tiny.config(tmp_path_factory.mktemp('source'), name='source', **ROPE))


def continued(tmp_path, source, **fields):
    usual = dict(name='next', encoding='rope()', init__source=str(source), train__length=32)
    usual |= dict(train__steps=2, train__warmup=1)
    config = tiny.config(tmp_path, **{**usual, **fields})
    # What a user gets who says nothing about the model.
    config.model.update(layers=6, width=256, heads=8, dropout=0.0)
    own = {name: value for name, value in fields.items() if name.startswith('model__')}
    config.update_from_flattened_dict(tiny.dotted(own))
    return config


def resolve(config):
    return initial.resolve(config, initial.open_initial(config.init.source, config.init.extend))


def leaves(model):
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator='.')
    found = jax.tree_util.tree_leaves_with_path(params)
    return {name(path): np.asarray(leaf) for path, leaf in found}


def changed(before, after):
    same = lambda name: name in before and np.array_equal(before[name], after[name])
    return {name for name in after if not same(name)}


EXTENDED = {  # init.extend -> the encoding that is written
    '': 'rope()',
    'pi(factor=2.0)': 'rope(freqs=pi(factor=2.0))',
    'yarn(factor=2.0)': 'rope(freqs=yarn(factor=2.0, train_len=16))',
    'abf(base=500.0)': 'rope(freqs=abf(base=500.0))',
    'longrope(long=(1.0, 2.0), factor=2.0)': (
        'rope(freqs=longrope(long=(1.0, 2.0), factor=2.0, train_len=16))'
    ),
    'psc() | pi(factor=2.0)': 'psc() | rope(freqs=pi(factor=2.0))',
    'pi(factor=2.0) | lm_infinite()': (
        'lm_infinite(encoding=rope(freqs=pi(factor=2.0)), train_len=16)'
    ),
}


@pytest.mark.full_but_one
@pytest.mark.parametrize('extend', EXTENDED)
def test_the_encoding_of_the_source_is_extended_from_its_own_length(tmp_path, source, extend):
    written = EXTENDED[extend]
    config = validate(resolve(continued(tmp_path, source, init__extend=extend)))
    assert config.encoding == written and not config.init.extend
    assert (config.model.layers, config.model.width, config.model.heads) == (2, 16, 4)
    assert resolve(config).to_dict() == config.to_dict()  # a config that is resolved stays as it is


def test_an_encoding_given_replaces_that_of_the_source(tmp_path, source):
    fields = dict(encoding='rope(base=77.0)', init__extend='yarn(factor=2.0)')
    config = continued(tmp_path, source, **fields)
    assert resolve(config).encoding == 'rope(base=77.0, freqs=yarn(factor=2.0, train_len=16))'


@pytest.mark.full
def test_weights_are_those_of_the_source_and_all_of_them_train(tmp_path, source):
    fields = dict(init__extend='pi(factor=2.0)', train__lr=1e-9, train__weight_decay=0.0)
    directory = train(continued(tmp_path, source, train__save_every=1, **fields))
    before = leaves(restore_model(source)[1])
    config, model, step = restore_model(directory, 1)
    assert (step, config.init.source) == (1, str(source))
    after = leaves(model)
    assert before.keys() == after.keys()
    assert all(np.allclose(before[name], after[name], atol=1e-8) for name in before)
    assert changed(before, after)
    loss = tiny.losses(directory)
    again = train(continued(tmp_path / 'again', source, **fields))
    assert loss[0] == tiny.losses(again)[0]


@pytest.mark.full
def test_adapters_train_and_the_rest_stays(tmp_path, source):
    fields = dict(model__lora_rank=2, model__lora_alpha=4.0, train__tune='adapters')
    fields |= dict(encoding='learned_absolute(max_len=16) | rope()', train__length=16)
    directory = train(continued(tmp_path, source, **fields))
    before, after = leaves(restore_model(source)[1]), leaves(restore_model(directory)[1])
    moved = {name.split('.')[-3] if 'adapters' in name else name for name in changed(before, after)}
    assert moved == {'adapters', 'shared.0.vectors'}
    assert all(after[name].any() for name in after if name.endswith('.up'))
    _, model, _ = restore_model(directory)
    tokens = np.arange(12)[None]
    merged = model.merged()
    assert merged.cfg.lora_rank == 0
    assert leaves(merged).keys() == before.keys() | {'shared.0.vectors'}
    assert np.allclose(read(merged, tokens), read(model, tokens), atol=2e-5)
    fields = dict(name='third', train__length=16, train__steps=1, train__lr=1e-9)
    third = train(continued(tmp_path, directory, **fields))
    assert np.allclose(read(restore_model(third)[1], tokens), read(model, tokens), atol=2e-5)


@pytest.mark.full
def test_temperatures_train_and_the_rest_stays(tmp_path):
    """configs/temperature.py, cut to seconds: only one number per layer and head moves, each by its
    own gradient.
    """
    fields = dict(name='source', encoding='nope()', train__length=16, train__steps=4)
    source = train(tiny.config(tmp_path, **fields))
    config = temperature.get_config()
    config.update(name='tuned', workdir=str(tmp_path))
    config.init.source = str(source)
    config.train.update(steps=3, warmup=1, length=32, save_every=1, keep=10)
    config.eval.at_end = False
    directory = train(config)
    written = stored.from_json(directory / stored.FILE).encoding
    assert written == 'nope_temperature(temperature=1.6, per_head=True, train_len=16)'
    before, after = leaves(restore_model(source)[1]), leaves(restore_model(directory)[1])
    (name,) = changed(before, after)
    assert name.endswith('raw') and after[name].shape == (2, 4) and after[name].dtype == np.float32
    assert len(np.unique(after[name])) == 8 and (after[name] >= 1).all()
    assert np.abs(after[name] - 1.6).max() < 0.5
    start = leaves(restore_model(directory, 1)[1])
    assert changed(start, after) == {name}
    same = restore_model(source)[1].extend('nope_temperature(1.6)')
    tokens = np.arange(32)[None]
    assert np.abs(read(restore_model(directory)[1], tokens) - read(same, tokens)).max() > 1e-4


@pytest.mark.full
def test_a_run_resumes_although_the_source_has_gone_on(tmp_path, source):
    config = continued(tmp_path, source, train__steps=4, train__save_every=2)
    directory = train(config)
    whole = leaves(restore_model(directory)[1])
    (directory / 'checkpoints' / '4').rename(tmp_path / 'gone')
    assert restore_model(directory)[2] == 2
    train(config)
    _, model, step = restore_model(directory)
    assert step == 4 and not changed(whole, leaves(model))


@pytest.mark.full
def test_a_public_checkpoint_is_continued_with_its_tokenizer(tmp_path):
    tokenizers = pytest.importorskip('tokenizers')
    pytest.importorskip('safetensors')
    from tokenizers import decoders, models, pre_tokenizers

    alphabet = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = tokenizers.Tokenizer(models.BPE(alphabet, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    sizes = dict(vocab_size=256, train_len=16, layers=2, width=16, heads=4, kv_heads=2)
    cfg = TransformerConfig(**sizes, mlp='swiglu', encoding='rope()')
    model = Transformer(cfg, rngs=nnx.Rngs(3))
    public = export_pretrained(model, tmp_path / 'public', tokenizer=tokenizer)
    fields = dict(init__extend='yarn(factor=2.0)', train__lr=1e-9, train__weight_decay=0.0)
    directory = train(continued(tmp_path, public, **fields, train__save_every=1))
    config, after, _ = restore_model(directory, 1)
    assert config.encoding == 'rope(base=10000.0, freqs=yarn(factor=2.0, train_len=16))'
    assert config.data.tokenizer == str(public) and config.model.mlp == 'swiglu'
    tokens = np.arange(24)[None]
    expected = read(model.extend('yarn(factor=2.0)'), tokens)
    assert np.allclose(read(after, tokens), expected, atol=1e-4)


REFUSED = {  # fields, separated by semicolons -> what the message says
    'init.source=nowhere': 'no such run or checkpoint: nowhere',
    'init.extend=pi(factor=2.0); train.length=8': (
        'train.length is 8, below the 16 that .* was trained at'
    ),
    'init.source=; init.extend=pi(factor=2.0)': 'init.source, which is empty',
    'model.layers=3': r'model.layers is 3, but .* has 2; leave it out',
    'init.extend=yran(factor=2.0)': "did you mean 'yarn'",
    'encoding=alibi(); init.extend=yarn(factor=2.0)': (
        'yarn extends one rotary encoding; found 0 in alibi'
    ),
    'train.tune=adapters': 'set model.lora_rank',
    'train.tune=encodings': 'the encodings have no parameters',
    'train.tune=adaptors': "did you mean 'adapters'",
    'train.tune=adapter; mesh.data=1000': "did you mean 'adapters'",
    'task=addition()': 'embedding is .* in .* and .* in the model that would continue it',
}


@pytest.mark.parametrize('fields', REFUSED)
def test_errors_come_before_any_device_is_used(tmp_path, source, fields, monkeypatch):
    used = lambda **_: pytest.fail('a device was used')
    monkeypatch.setattr('posenc_jax.lab.runs.run.make_mesh', used)
    typed = read_overrides(f'--config.{field}' for field in fields.split('; '))
    with pytest.raises((ValueError, FileNotFoundError), match=REFUSED[fields]):
        train(replaced(continued(tmp_path, source), typed))
    assert not list((tmp_path / 'next').glob('checkpoints/*'))


@pytest.mark.full
def test_an_encoding_may_not_leave_out_what_the_rotary_one_of_the_source_says(tmp_path):
    fields = dict(encoding='rope(base=500.0)', train__steps=1, train__warmup=1)
    based = train(tiny.config(tmp_path, name='based', **fields))
    said = r"rope\(\) leaves out 'base', but .* has rope\(base=500.0\)"
    with pytest.raises(SpecError, match=said):
        resolve(continued(tmp_path, based, encoding='psc() | rope()'))
    kept = resolve(continued(tmp_path, based, init__extend='psc()'))
    assert kept.encoding == 'psc() | rope(base=500.0)'
    asked = 'rope(base=7.0)'
    assert resolve(continued(tmp_path, based, encoding=asked)).encoding == asked


def test_layers_of_a_pattern_that_have_nothing_to_extend_stay(tmp_path, source):
    of = lambda *pattern: continued(
        tmp_path, source, pattern=pattern, init__extend='yarn(factor=2.0)'
    )
    written = 'rope(base=500.0, freqs=yarn(factor=2.0, train_len=16))', 'alibi()'
    assert resolve(of('rope(base=500.0)', 'alibi()')).pattern == written
    with pytest.raises(SpecError, match='yarn extends one rotary encoding; found 0 in nope'):
        resolve(of('nope()', 'alibi()'))


@pytest.mark.full
def test_weights_without_a_place_are_an_error(tmp_path, source):
    encoding = 'learned_absolute(max_len=32) | rope()'
    fields = dict(encoding=encoding, train__steps=1, train__warmup=1)
    learned = train(tiny.config(tmp_path, name='learned', **fields))
    told = r'learned: learned_absolute has parameters, and the encoding that .* has no learned_abs'
    with pytest.raises(SpecError, match=told):
        train(continued(tmp_path, learned, encoding='rope(base=3.0)'))


@pytest.mark.full
@pytest.mark.parametrize(
    'encoding, front, moved',
    [
        # A table of all layers, and vectors of a task that come in front of it.
        ('learned_absolute(max_len=32)', 'papeft()', ('shared', 0, 1)),
        # Both have variables in every layer.
        ('ssmax() | rope()', 'fire(threshold=8.0)', ('encodings', 0, 1)),
    ],
)
def test_the_weights_of_an_encoding_follow_it_behind_another(tmp_path, encoding, front, moved):
    fields = dict(encoding=encoding, train__steps=4, train__length=16)
    before = train(tiny.config(tmp_path, name='before', **fields))
    config = continued(tmp_path, before, init__extend=front, **UNMOVED)
    (folder, old, new), after = moved, leaves(restore_model(train(config))[1])
    found = leaves(restore_model(before)[1])
    assert any(f'{folder}.{old}.' in name for name in found)
    for name, value in found.items():
        name = name.replace(f'{folder}.{old}.', f'{folder}.{new}.')
        np.testing.assert_allclose(after[name], value, atol=1e-6)


@pytest.mark.full
def test_a_stretched_table_is_where_training_starts(tmp_path):
    """`segmented_sequences` changes the size of a variable; one step at a rate of 1e-9 moves
    nothing that shows.
    """
    table = dict(encoding='learned_absolute(max_len=16)', train__steps=4, train__length=16)
    source = train(tiny.config(tmp_path, name='table', **table))
    config = continued(tmp_path, source, init__extend='segmented_sequences(factor=2)', **UNMOVED)
    assert resolve(config).encoding == 'learned_absolute(max_len=32)'
    before, after = (leaves(restore_model(run)[1]) for run in (source, train(config)))
    (name,) = (name for name in before if name.endswith('vectors'))
    assert after[name].shape == (32, before[name].shape[1])
    np.testing.assert_allclose(after[name][::2], before[name], atol=1e-6)
    between = (before[name][:-1] + before[name][1:]) / 2
    np.testing.assert_allclose(after[name][1:31:2], between, atol=1e-6)
    for other in before.keys() - {name}:
        np.testing.assert_allclose(after[other], before[other], atol=1e-6)


def test_both_sides_of_an_encoder_decoder_are_extended(tmp_path):
    two = dict(kind='encoder_decoder', source_size=7, source_len=6, encoding='rope()')
    cfg = TransformerConfig(vocab_size=11, train_len=8, layers=1, width=16, heads=2, **two)
    config = defaults.get_config().unlock()
    config.init.update(source=str(tmp_path), extend='yarn(factor=2.0)')
    found = initial.resolve(config, initial.Initial(cfg, lambda mesh: None))
    assert found.encoding == 'rope(freqs=yarn(factor=2.0, train_len=8))'
    assert found.source_encoding == 'rope(freqs=yarn(factor=2.0, train_len=6))'
    assert (found.cross, found.model.kind) == ('nope()', 'encoder_decoder')
    pattern = dict(source_encoding='', source_pattern=('nope()', 'rope()'))
    cfg = dataclasses.replace(cfg, source_layers=2, **pattern)
    found = initial.resolve(config, initial.Initial(cfg, lambda mesh: None))
    assert found.source_pattern == ('nope()', 'rope(freqs=yarn(factor=2.0, train_len=6))')
