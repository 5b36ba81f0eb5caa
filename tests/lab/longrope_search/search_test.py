"""The search of longrope factors on runs and checkpoints, and its command."""

import dataclasses
import json
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from configs import default, extend
from posenc_jax.lab.evaluate import scoring
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.evaluate.scoring import scorer
from posenc_jax.lab.files.lock import hold
from posenc_jax.lab.longrope_search import __main__ as command
from posenc_jax.lab.longrope_search import objective as objectives
from posenc_jax.lab.longrope_search import search as searches
from posenc_jax.lab.longrope_search import target as targets
from posenc_jax.lab.longrope_search.evolution import Sizes
from posenc_jax.lab.longrope_search.genome import Genome
from posenc_jax.lab.model.config import TransformerConfig
from posenc_jax.lab.model.transformer import abstract_model
from posenc_jax.lab.pretrained import export_pretrained
from posenc_jax.lab.runs import initial
from posenc_jax.lab.runs.prepare import prepare
from posenc_jax.lab.runs.run import Run
from posenc_jax.layer.sharding import make_mesh
from posenc_jax.methods.rope import Rotary
from posenc_jax.protocol.errors import SpecError
from tests.lab.evaluate.pretrained_test import byte_level
from tests.lab.evaluate.run_test import make_run
from tests.lab.longrope_search.genome_test import TUNED, made
from tests.lab.longrope_search.search_files_test import Stop, stopping
from tests.small_models import small_model


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    changes = dict(model={'tie': False}, eval={'lengths': (), 'samples': 256})
    return make_run(tmp_path_factory.mktemp('rope'), encoding='rope()', **changes)


@pytest.fixture(scope='module')
def tuned(tmp_path_factory):
    """As the run would be after training with factors for twice its length."""
    changes = dict(model={'tie': False}, train={'length': 32}, eval={'lengths': (), 'samples': 256})
    return make_run(tmp_path_factory.mktemp('tuned'), encoding=f'rope(freqs={TUNED})', **changes)


@pytest.mark.full_but_one
@pytest.mark.parametrize(
    'source, length, genome, spec',
    [
        ('run', 64, Genome((1.0, 1.5, 3.0, 3.5)), 'longrope((1.0, 1.5, 3.0, 3.5), factor=4.0)'),
        (
            'tuned',
            64,
            Genome((1.0, 2.0, 2.0, 3.0), 8),
            'longrope((1.0, 3.0, 4.0, 7.5), start=8, factor=4.0, train_len=16)',
        ),
        (
            'tuned',
            16,
            Genome((1.0, 2.0, 2.0, 3.0), 2),
            TUNED.replace('factor', 'short=(1.0, 2.0, 2.0, 3.0), factor'),
        ),
    ],
    ids=['start 0', 'longer', 'short'],
)
def test_the_objective_is_the_exact_rule_compiled_once(
    request, source, length, genome, spec, monkeypatch
):
    traces, plain = [], scoring.token_scores
    path = request.getfixturevalue(source)
    job = prepare(path, {'eval.lengths': (length,), 'eval.split': 'validation'})
    model, _ = job.load()
    stream = job.task.tokens('validation')
    windows = objectives.pick_documents(len(stream) - 1, length, 3)
    target = targets.target_of(path, targets.rotary_part(model), 16, length)
    mesh, rows = (make_mesh(data=4, sequence=2), 4) if genome.start else (None, 3)
    objective = objectives.make_objective(model, target, stream, windows, rows, mesh)
    wanted = objectives.perplexity_of(scorer(model.extend(spec)), stream, windows, 3)
    counted = lambda *args, **given: traces.append(1) or plain(*args, **given)
    monkeypatch.setattr(scoring, 'token_scores', counted)
    others = [objective(Genome((1.0,) * 4)), objective(Genome((4.0,) * 4, 4))]
    assert objective(genome) == pytest.approx(wanted, rel=2e-6)
    assert all(abs(other - wanted) > 1e-4 * wanted for other in others) and len(traces) < 2


@pytest.mark.full
def test_a_length_that_the_mesh_does_not_divide(run, tmp_path, monkeypatch):
    cut = searches.search(
        run, 19, Sizes(3, 0, 2), documents=2, out=tmp_path / 'cut.json',
        overrides={'mesh.data': '2', 'mesh.sequence': '4'},
    )  # fmt: skip
    one = make_mesh(devices=jax.devices()[:1])
    monkeypatch.setattr(Run, 'mesh', one)
    whole = searches.search(run, 19, Sizes(3, 0, 2), documents=2, out=tmp_path / 'whole.json')
    found, expected = (json.loads(path.read_text()) for path in (cut, whole))
    assert found['spec'] == expected['spec'] and len(expected['state']['history']) == 3
    assert found['trace'] == pytest.approx(expected['trace'], rel=2e-6)
    assert found['exact'] == pytest.approx(expected['exact'], rel=2e-6)


def options(**sizes):
    return [f'--{name}={size}' for name, size in sizes.items()]


SMALL = options(
    length=32, population=5, iterations=2, parents=3, mutations=1, crossovers=1, documents=2
)


@pytest.fixture(scope='module')
def finished(run):
    """A whole search by the command."""
    assert command.main([f'--run={run}', *SMALL]) == 0
    return searches.default_output(run, 32)


@pytest.mark.full
def test_the_command_writes_what_it_found(run, finished):
    fields = json.loads(finished.read_text())
    assert finished == Path(run, 'longrope_32.json')
    assert list(fields)[-1] == 'spec'
    assert fields['iteration'] == 2 and fields['settings']['factor'] == 2.0
    assert fields['trace'][-1] <= fields['trace'][0] <= fields['exact']['yarn_ramp']
    assert fields['exact']['perplexity'] == pytest.approx(fields['best']['perplexity'], rel=2e-6)
    asked = {'extend': fields['spec'], 'eval.lengths': (32,), 'eval.protocols': 'nonoverlapping'}
    found = evaluate([run], asked)
    assert found.runs[0].extend == fields['spec']


def test_two_searches_of_one_file_are_refused(run, finished, capsys):
    before, lock = finished.read_text(), finished.with_name(finished.name + '.lock')
    with hold(lock, f'{finished} is being searched', 'choose another --out'):
        assert command.main([f'--run={run}', *SMALL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f'longrope search: {finished} is being searched by process ')
    assert line.endswith('choose another --out')
    assert finished.read_text() == before


@pytest.mark.full
def test_progressive_extension(tuned, monkeypatch, capsys):
    """Search at four times the original length, then, on the run with these factors, the list
    short.
    """
    sizes = options(population=7, iterations=1, parents=3, mutations=2, crossovers=2, documents=2)
    assert command.main([f'--run={tuned}', '--length=64', *sizes]) == 0
    fields = json.loads(searches.default_output(tuned, 64).read_text())
    rule = made(fields['spec'])
    best = fields['best']
    assert fields['settings']['rule'] == TUNED
    assert (rule.factor, rule.train_len, rule.short) == (4.0, 16, None)
    np.testing.assert_allclose(rule.long, np.multiply((1.0, 1.5, 2.0, 2.5), best['factors']))
    assert rule.start == best['start'] and best['factors'][-1] <= 1 + 64 / 32
    check_score(fields, tuned)

    config = extend.get_config()
    config.init.update(source=tuned, extend=fields['spec'])
    resolved = initial.resolve(config, initial.open_initial(tuned))
    assert resolved.encoding == f'rope(freqs={fields["spec"]})'

    rule = dataclasses.replace(rule, start=0)  # an untrained model may want any
    longer = f'{tuned} | {targets.spec_of(rule)}'
    assert command.main([f'--run={longer}', '--length=12', *sizes]) == 0
    fields = json.loads(searches.default_output(tuned, 12).read_text())
    assert dataclasses.replace(made(fields['spec']), short=None) == rule
    assert list(made(fields['spec']).short) == fields['best']['factors']
    first, exact = next(iter(fields['state']['history']))[0], fields['exact']
    assert exact['ones'] == first >= fields['best']['perplexity']
    assert f'{exact["as_it_is"]:.4f} with nothing changed' in capsys.readouterr().out
    assert exact['as_it_is'] != exact['ones']
    check_score(fields, tuned)
    monkeypatch.setattr(searches, 'run_search', None)
    assert command.main([f'--run={longer}', '--length=12', *sizes]) == 0  # what is there


def check_score(fields, run):
    """The answer is taken as it is, and is worth what the search says."""
    assert fields['exact']['perplexity'] == pytest.approx(fields['best']['perplexity'], rel=2e-6)
    asked = {'eval.lengths': (fields['settings']['length'],), 'eval.protocols': ('nonoverlapping',)}
    job = prepare(f'{run} | {fields["spec"]}', asked)
    model = abstract_model(job.cfg, job.config.extend)
    (part,) = [part for part in model.shared if isinstance(part, Rotary)]
    assert part.freqs == made(fields['spec'])


@pytest.mark.full
def test_the_command_continues_where_it_was_stopped(run, finished, tmp_path, capsys, monkeypatch):
    path = tmp_path / 'parts.json'
    again = [f'--run={run}', *SMALL, f'--out={path}']
    with monkeypatch.context() as patch:
        make = objectives.make_objective
        patch.setattr(searches, 'make_objective', lambda *a: interrupted(make(*a), after=6))
        assert command.main(again) == 130
    assert 'the same command continues' in capsys.readouterr().err
    assert json.loads(path.read_text())['iteration'] == 0
    assert command.main(again) == 0
    shown = capsys.readouterr().out
    assert 'evaluation 9/9' in shown
    assert shown.endswith(f'{path}\n{json.loads(path.read_text())["spec"]}\n')
    assert path.read_text() == finished.read_text()


def test_the_command_shows_or_refuses_what_is_there(run, finished, capsys, monkeypatch):
    monkeypatch.setattr(searches, 'run_search', None)  # nothing is searched any more
    before = finished.read_text()
    capsys.readouterr()
    assert command.main([f'--run={run}', *SMALL]) == 0
    assert capsys.readouterr().out.endswith(f'{finished}\n{json.loads(before)["spec"]}\n')
    assert command.main([f'--run={run}', *SMALL, '--seed=1']) == 2
    assert 'seed: 0 there, 1 here' in capsys.readouterr().err
    changed = json.loads(before)
    changed['settings']['step'] = 1
    finished.write_text(json.dumps(changed))
    assert command.main([f'--run={run}', *SMALL]) == 2
    assert 'step: 1 there, 2 here' in capsys.readouterr().err
    finished.write_text(before)


def interrupted(objective, after):
    counted = stopping(objective, after)

    def stops(genome):
        try:
            return counted(genome)
        except Stop:
            raise KeyboardInterrupt from None

    return stops


@pytest.mark.parametrize(
    'arguments, message',
    [
        (['--length=8'], 'length 8 is shorter than the trained length; it must be at least 16'),
        (['--length=32', '--documents=100000'], 'the validation split has'),
        (['--length=32', '--variant=piece'], "variant is 'piece'"),
        (
            ['--length=32', '--config.extend=yarn(factor=2.0)'],
            'config.extend is decided by the search',
        ),
        (['--length=32', '--config.eval.lenths=3'], "did you mean 'eval.lengths'"),
        (['--length=32', '--seed=-1'], 'seed must be at least 0'),
        (['--length=32', '--probability=2'], 'probability must lie in'),
    ],
)
def test_the_command_says_what_is_wrong(run, arguments, message, capsys):
    before = set(Path(run).iterdir())
    assert command.main([f'--run={run}', *arguments]) == 2
    assert message in capsys.readouterr().err
    assert set(Path(run).iterdir()) == before


@pytest.mark.parametrize('arguments, message', [
    (['--population=8'], '32 parents cannot be selected from a population of 8'),
    (['--populations=8', '8'], 'cannot read'),
])  # fmt: skip
def test_the_command_reads_its_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        command.main(['--run=x', '--length=32', *arguments])
    assert message in capsys.readouterr().err


def part_of(pattern):
    sizes = dict(vocab_size=7, train_len=8, layers=2, width=16, heads=2, encoding='')
    return targets.rotary_part(abstract_model(TransformerConfig(**sizes, pattern=pattern)))


@pytest.mark.parametrize(
    'pattern, message',
    [
        (
            ('alibi()', 'alibi()'),
            r'longrope extends a rotary encoding; there is none in alibi\(\) / alibi\(\)',
        ),
        (('rope()', 'rope(base=100.0)'), 'width 8 with base 10000.0, width 8 with base 100.0'),
        (
            ('rope()', f'rope(freqs={TUNED})'),
            r'width 8 with base 10000.0, width 8 with base 10000.0 and longrope\(long=',
        ),
    ],
)
def test_models_that_cannot_be_searched(pattern, message):
    with pytest.raises(SpecError, match=message):
        part_of(pattern)


def test_layers_without_a_rotary_part_stay_as_they_are():
    assert part_of(('rope(partial=0.5)', 'alibi()')).rotary_dim == 4


def test_tasks_without_a_perplexity_are_refused(monkeypatch):
    config = default.get_config()
    config.task = 'copy()'
    monkeypatch.setattr(searches, 'prepare', lambda *_, **__: Run.of(config))
    with pytest.raises(SpecError, match='which has none'):
        searches.search('x', 512)


RULE = 'longrope(long=(1.0, 2.0), factor=2.0, train_len=16{})'


@pytest.mark.parametrize(
    'freqs, length, message',
    [
        (
            RULE.format(''),
            17,
            'already has factors of LongRoPE up to length 32; give a longer length .* or at most '
            '16 to .* short; got 17',
        ),
        (RULE.format(''), 32, 'already has factors of LongRoPE up to length 32;'),
        (
            RULE.format(', start=256'),
            16,
            'the first 256 positions of x keep the original frequencies, so length 16 has no '
            'factors to search; it must be above 256',
        ),
        (
            RULE.format(', dynamic=True'),
            64,
            'x has longrope with dynamic=True; a search continues only from dynamic=False',
        ),
        (
            RULE.format(", mode='long'"),
            16,
            "x has longrope with mode='long'; a search continues only from mode='length'",
        ),
        (
            'yarn(factor=4.0)',
            64,
            r'x has the frequencies YaRN\(factor=4.0.*; a search starts from rope or from longrope',
        ),
    ],
)
def test_runs_that_are_not_searched_on(freqs, length, message, monkeypatch):
    config = default.get_config()
    config.encoding = f'rope(freqs={freqs})'
    config.model.update(layers=1, width=8, heads=2)
    monkeypatch.setattr(searches, 'prepare', lambda *_, **__: Run.of(config))
    with pytest.raises(ValueError, match=message):
        searches.search('x', length)


@pytest.mark.parametrize(
    'extension', ['pi(factor=2.0)', 'longrope(long=(1.0, 2.0), factor=2.0) | dca()']
)
def test_another_extension_is_not_part_of_the_run(extension):
    with pytest.raises(SpecError, match='give the run alone or with longrope, not'):
        searches.search(f'runs/rope | {extension}', 32)


def public_checkpoint(path, encoding, train_len):
    sizes = dict(vocab_size=256, train_len=train_len, layers=1, width=16, heads=2, mlp='swiglu')
    return export_pretrained(small_model(**sizes, encoding=encoding), path, tokenizer=byte_level())


@pytest.mark.full
def test_a_public_checkpoint_is_searched(tmp_path):
    model = public_checkpoint(tmp_path / 'model', 'rope()', 16)
    out = tmp_path / 'a' / 'found.json'
    fields = json.loads(
        searches.search(str(model), 24, Sizes(3, 0, 2), documents=1, out=out).read_text()
    )
    settings = fields['settings']
    assert (settings['train_len'], settings['factor'], fields['evaluations']) == (16, 1.5, 3)
    assert fields['exact']['perplexity'] == pytest.approx(fields['best']['perplexity'], rel=2e-6)


@pytest.mark.full
def test_a_public_checkpoint_with_factors_is_searched_on(tmp_path, capsys):
    """In the layout of Phi-3: the original length beside the scaling, no factor, both lists, one of
    which descends.
    """
    lists = {'long_factor': [1.0, 3.0, 2.0, 4.0], 'short_factor': [1.0, 1.25, 1.0, 1.5]}
    long, short = map(tuple, lists.values())
    rule = f'longrope(long={long}, short={short}, factor=2.0, train_len=16)'
    model = public_checkpoint(tmp_path / 'model', f'rope(freqs={rule})', 32)
    config = json.loads((model / 'config.json').read_text())
    config['rope_scaling'] = {'type': 'longrope', **lists}
    config['original_max_position_embeddings'] = 16
    (model / 'config.json').write_text(json.dumps(config))
    path = searches.search(str(model), 40, Sizes(4, 0, 2), documents=1, out=tmp_path / 'found.json')
    assert 'its factors descend in places' in capsys.readouterr().out
    fields = json.loads(path.read_text())
    answer = made(fields['spec'])
    assert (answer.factor, answer.short, answer.magnitude) == (2.5, short, 'su')
    np.testing.assert_allclose(answer.long, np.multiply(long, fields['best']['factors']))
    check_score(fields, model)


def test_where_the_file_of_a_checkpoint_lies(tmp_path):
    checkpoint_file = tmp_path / 'small.gguf'
    checkpoint_file.write_bytes(b'GGUF')
    found = str(searches.default_output(str(checkpoint_file), 32))
    assert re.fullmatch(r'runs/small-[0-9a-f]{6}/longrope_32\.json', found)
