"""Text from a run or a public checkpoint: its own tokens, one batch of unequal prompts, its
end-of-text, clear refusals.
"""

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import posenc_jax.lab.cli.generate
from posenc_jax.lab.cli.generate import continue_text, main
from posenc_jax.lab.decoding.generate import generate
from posenc_jax.lab.model.inputs import source_of
from posenc_jax.lab.runs.prepare import prepare
from tests.lab.evaluate.pretrained_test import checkpoint  # noqa: F401  (a fixture)
from tests.lab.evaluate.run_test import make_run
from tests.smollm2 import needs_smollm2, smollm2

NEW, LEAST = 8, {'eval.lengths': (1,), 'eval.stride': 1}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp('runs')
    make_run(root / 'learned', encoding='learned_absolute(max_len=32)')
    make_run(root / 'rope', encoding='rope()')
    make_run(root / 'copy', encoding='nope()', task='copy()', train={'length': 4})
    model = {'layers': 1, 'width': 16, 'heads': 2, 'tie': False}
    both, encoder = {**model, 'kind': 'encoder_decoder'}, {**model, 'kind': 'encoder'}
    aligned = dict(task='translation(words=8, alignments=True)', source_encoding='xlpe()')
    make_run(root / 'aligned', encoding='rope()', **aligned, model=both)
    make_run(root / 'translation', encoding='rope()', task='translation(words=8)', model=both)
    make_run(root / 'masked', encoding='alibi_symmetric()', task='masked_text()', model=encoder)
    for name, task in (('class', '"parity_check", readout="class"'), ('tape', '"odds_first"')):
        make_run(root / name, encoding='nope()', task=f'chomsky15({task})', model=encoder)
    return root


def greedy(model, ids):
    """The most probable tokens behind a prompt."""
    rows = generate(model, jnp.asarray(ids[None]), max_new_tokens=NEW, temperature=0.0)
    return np.asarray(rows)[0, len(ids) :].tolist()


@pytest.mark.full
def test_prompts_of_unequal_length_continue_as_if_alone(runs):
    run, prompts = str(runs / 'rope'), ['Positions', 'of ü']
    together = continue_text(run, prompts, tokens=NEW)
    assert together == [continue_text(run, [prompt], tokens=NEW)[0] for prompt in prompts]
    task, model = prepare(run, LEAST).task, prepare(run, LEAST).load()[0]
    ids = task.encode(prompts[1])
    assert together[1] == [task.decode(np.array(greedy(model, ids)))]


@pytest.mark.full
def test_samples_differ_and_depend_on_the_seed_alone(runs):
    given = dict(tokens=NEW, temperature=1.0, top_p=0.9, samples=2)
    draw = lambda seed: continue_text(str(runs / 'rope'), ['a'], **given, seed=seed)[0]
    assert draw(0) == draw(0) != draw(1) and draw(0)[0] != draw(0)[1]


def test_the_command_prints_prompts_with_their_continuations(runs, tmp_path, capsys):
    (tmp_path / 'prompt.txt').write_text('second\n')
    run = f'--run={runs / "rope"} | yarn(factor=4.0)'
    prompts = '--prompt=first', f'--prompt_file={tmp_path / "prompt.txt"}'
    assert main([run, *prompts, '--tokens=4']) == 0
    extended = dict(overrides={'extend': 'yarn(factor=4.0)'})
    texts = continue_text(str(runs / 'rope'), ['first', 'second'], tokens=4, **extended)
    assert capsys.readouterr().out == f'first{texts[0][0]}\n---\nsecond{texts[1][0]}\n'


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'name, prompts, mesh',
    [
        ('rope', ['a', 'second'], {'mesh.tensor': 2, 'mesh.sequence': 2}),
        ('translation', ['n0 m1 v0 ,0 n3', 'n2 n1'], {'mesh.tensor': 2}),
        ('masked', ['a [MASK] c', '[MASK]'], {'mesh.tensor': 2, 'mesh.sequence': 2}),
    ],
)
def test_a_mesh_writes_the_text_of_one_device(runs, name, prompts, mesh):
    write = lambda mesh: continue_text(str(runs / name), prompts, tokens=4, overrides=mesh)
    assert write(mesh) == write({})


def test_the_mesh_of_the_config_generates(runs, tmp_path, monkeypatch):
    """A model that was cut over devices in training may be too large for one."""
    found = []
    noted = lambda _, __, **given: found.append(given)
    monkeypatch.setattr(posenc_jax.lab.cli.continuations, '_continued', noted)
    make_run(tmp_path / 'cut', encoding='rope()', mesh={'data': 1, 'fsdp': 4, 'tensor': 2})
    for run in (tmp_path / 'cut', runs / 'rope'):
        continue_text(str(run), ['a'])
    assert found[0]['mesh'].shape == dict(data=1, fsdp=4, tensor=2, sequence=1)
    assert found[1]['mesh'] is None  # the default, of which one device is enough


@pytest.mark.full
def test_text_ends_where_the_checkpoint_says(checkpoint):  # noqa: F811
    path, model = checkpoint[0] / 'model', checkpoint[1]
    task, prompt = prepare(str(path), LEAST).task, 'the theme'
    new = greedy(model, task.encode(prompt))

    def check(*shown):
        assert continue_text(str(path), [prompt], tokens=NEW) == [[task.decode(np.array(shown))]]

    check(*new)
    file = path / 'config.json'
    config = json.loads(file.read_text())
    for ends in (new[2], [new[2], new[3]]):
        file.write_text(json.dumps({**config, 'eos_token_id': ends}))
        check(*new[: new.index(new[2])])
    generation = path / 'generation_config.json'
    generation.write_text(json.dumps({'eos_token_id': new[4]}))  # goes before that of the config
    check(*new[: new.index(new[4])])
    generation.unlink()
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    'run, options, message',
    [
        ('none', [], 'no such run directory'),
        ('copy', [], 'was trained on copy.., which is not text'),
        ('class', [], r'was trained on chomsky15.*, which is one class for a row; expected a run'),
        ('tape', [], r'was trained on chomsky15.*, which is answers at given places; expected'),
        ('masked', [], r'which fills masks; expected \[MASK\] in every prompt'),
        ('masked', ['--temperature=1'], 'temperature must be 0, got 1.0'),
        ('masked', ['--recompute'], 'are for runs of language..; .* was trained on masked_text'),
        ('translation', [], "word is 'ab'; "),
        ('translation', ['--constant_cache=4'], 'are for runs of language'),
        (
            'learned',
            ['--tokens=40'],
            r'a prompt of 3 tokens and 40 new ones: .* position 42, which is not in 0 .. 31',
        ),
        ('rope', ['--prompt='], 'a prompt is empty'),
        ('rope', ['--temperature=1', '--top_p=1.5'], r'top_p must lie in \(0, 1\], got 1.5'),
        ('rope', ['--constant_cache=0'], 'room for new tokens, must be at least 1, got 0'),
        ('rope', ['--constant_cache=4'], 'needs lm_infinite in every layer'),
        ('rope', ['--recompute'], 'frequencies that follow the length of the text'),
        ('rope', ['--recompute', '--constant_cache=4'], 'constant_cache forgets the text'),
        (
            'rope',
            ['--tokens=1000000000'],
            'a cache of 1 rows of 100000000. tokens would take .*, the device has',
        ),
        (
            'rope',
            ['--samples=1000000000', '--temperature=1'],
            'a cache of 1000000000 rows of .* tokens would take .*iB',
        ),
        ('rope', ['--samples=2'], 'temperature=0 makes the 2 samples equal'),
        ('rope', ['--extend=yran(factor=2.0)'], "did you mean 'yarn'"),
    ],
)
def test_wrong_requests_are_one_line(runs, run, options, message, capsys):
    assert main([f'--run={runs / run}', '--prompt=ab', *options]) == 2
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and said.startswith('generate: ')
    assert re.search(message, said), said


@pytest.mark.full
@pytest.mark.parametrize('name', ['translation', 'aligned'])
def test_sources_of_unequal_length_are_translated_as_if_alone(runs, name, capsys):
    run, prompts = str(runs / name), ['n0 m1 v0 ,0 n3', 'n2 n1']
    job = prepare(run, LEAST)
    model, batch = job.load()[0], job.task.source_batch(prompts[1:])
    source = model.encoded(*source_of(batch))
    whole = jax.jit(lambda ids: model(ids, source=source)[0].argmax(-1))
    ids = [job.task.begin]
    while len(ids) <= NEW and ids[-1] != job.task.end:  # greedy, by whole passes
        row = np.pad(ids, (0, NEW + 1 - len(ids)))[None]
        ids.append(int(whole(row)[len(ids) - 1]))
    alone = job.task.decode(np.array([i for i in ids[1:] if i != job.task.end]))
    assert continue_text(run, prompts, tokens=NEW)[1] == [alone]
    assert main([f'--run={run}', f'--prompt={prompts[1]}', f'--tokens={NEW}']) == 0
    assert capsys.readouterr().out == f'{alone}\n'


def test_masks_are_filled_in_one_pass(runs, capsys):
    run, prompts = str(runs / 'masked'), ['Pos[MASK]ti', 'a[MASK][MASK]']
    job = prepare(run, LEAST)
    model, expected = job.load()[0], []
    for prompt in prompts:
        ids = job.task.encode(prompt)
        best = np.asarray(model(jnp.asarray(ids)[None])[0].argmax(-1))
        expected.append([job.task.decode(np.where(ids == 257, best, ids)[1:])])
    assert continue_text(run, prompts) == expected
    assert expected[0][0].startswith('Pos') and '[MASK]' not in expected[0][0]
    assert main([f'--run={run}', f'--prompt={prompts[0]}']) == 0
    assert capsys.readouterr().out == f'{expected[0][0]}\n'


@needs_smollm2
@pytest.mark.full
def test_smollm2_continues_a_text():
    pytest.importorskip('gguf')
    (text,) = continue_text(str(smollm2()), ['The capital of France is'], tokens=16)[0]
    task = prepare(str(smollm2()), LEAST).task
    expected = '7042 30 198 198 504 2988 314 42 216 34 32 33 40 29 32 33'
    assert task.encode(text).tolist() == [int(token) for token in expected.split()]


def test_a_prompt_is_written_into_the_chat_template(checkpoint, tmp_path, capsys):  # noqa: F811
    run = tmp_path / 'chat'
    shutil.copytree(checkpoint[0] / 'model', run)
    with pytest.raises(ValueError, match='has no chat template; expected chat_template in'):
        continue_text(str(run), ['the'], tokens=4, chat=True)
    template = '{{ messages[0].role }}: {{ messages[0].content }}|'
    (run / 'tokenizer_config.json').write_text(json.dumps({'chat_template': template}))
    assert main([f'--run={run}', '--prompt=the', '--tokens=4', '--chat']) == 0
    answer = continue_text(str(run), ['user: the|'], tokens=4)[0][0]
    assert capsys.readouterr().out == f'{answer}\n'


def test_a_run_on_bytes_has_no_chat_template(runs):
    with pytest.raises(ValueError, match='chat needs a chat template, and .* trained on bytes'):
        continue_text(str(runs / 'rope'), ['a'], chat=True)
    with pytest.raises(ValueError, match=r'recompute and chat are for runs of language\(\)'):
        continue_text(str(runs / 'masked'), ['a [MASK]'], chat=True)
