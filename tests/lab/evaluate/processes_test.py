"""Two processes evaluate and generate together, with the results of one."""

import json
import re

import pytest

from posenc_jax.lab.cli import eval as command
from posenc_jax.lab.cli.generate import continue_text
from posenc_jax.lab.cluster import cluster
from posenc_jax.lab.evaluate.results import read
from posenc_jax.lab.evaluate.run import evaluate
from posenc_jax.lab.longrope_search import __main__ as search
from posenc_jax.lab.longrope_search import objective
from posenc_jax.lab.longrope_search import search as searches
from tests.lab.evaluate.run_test import make_run
from tests.lab.longrope_search.search_test import SMALL, interrupted
from tests.lab.train import tiny
from tests.lab.train.loop_test import finish, flags_of, free_port


@pytest.fixture(scope='module')
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp('two') / 'cope', encoding='cope(npos=8)')


def together(*command):
    """The output of process 0. The other one prints nothing."""
    port = free_port()
    both = [tiny.start_python(*command, *flags_of(port, 2, i), devices=2) for i in range(2)]
    (out, _), (silent, _) = [finish(process) for process in both]
    # The transport greets, and its threads write over each other.
    said = [line for line in silent.splitlines() if 'peer ranks' not in line]
    assert not said
    return out


@pytest.mark.full
def test_an_evaluation(run, tmp_path):
    fields = {'eval.protocols': 'nonoverlapping'}
    flags = [f'--config.{name}={value}' for name, value in fields.items()]
    mesh = '--config.mesh.data=2', '--config.mesh.tensor=2'
    out = together('eval.py', f'--run={run}', f'--out={tmp_path}', *flags, *mesh)
    assert str(tmp_path / 'results.json') in out
    both, one = read(tmp_path)[0], evaluate([run], fields).runs[0]
    for own, other in zip(both.measurements, one.measurements, strict=True):
        assert own.nll == pytest.approx(other.nll, abs=1e-5)


@pytest.mark.full
def test_generated_text(run):
    asked = f'--run={run}', '--tokens=6', '--config.mesh.sequence=4', '--prompt=The '
    out = together('-m', 'posenc_jax.lab.cli.generate', *asked, '--prompt=A longer one')
    prompts = ['The ', 'A longer one']
    texts = continue_text(run, prompts, tokens=6)
    assert out.endswith('\n---\n'.join(p + t for p, (t,) in zip(prompts, texts)) + '\n')


@pytest.mark.full
def test_what_one_lacks_ends_both(run, tmp_path):
    port = free_port()
    asked = 'eval.py', f'--run={run}', f'--out={tmp_path}'
    both = [
        tiny.start_python(*asked, f'--config.eval.tokens={n}', *flags_of(port, 2, i))
        for i, n in enumerate((128, -1))
    ]
    told, wrong = (finish(process, status)[1] for process, status in zip(both, (1, 2)))
    assert 'eval.tokens' in wrong and wrong.startswith('eval.py: ')
    assert told.startswith('eval.py: process 1 of 2 ended with') and 'eval.tokens' in told
    assert 'started again in every process, the same command repeats what is not saved' in told


def test_numbers_that_do_not_fit(run, capsys):
    given = '--coordinator=127.0.0.1:99', '--processes=2', '--process_id=2'
    assert command.main([f'--run={run}', *given]) == 2
    expected = 'eval.py: process_id must lie in 0 .. processes - 1, got 2 of 2; give --process_id\n'
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    'given, message',
    [
        (('', 0, None), '--processes must be at least 1, got 0'),
        (('', -1, None), '--processes must be at least 1, got -1'),
        (('host:99', 0, 0), '--processes must be at least 1, got 0'),
        (('', None, 7), '--process_id=7 needs the address of process 0; give --coordinator='),
        (('', None, -1), '--process_id=-1 needs the address of process 0'),
        (('', 2, 1), '--processes=2 needs the address of process 0; give --coordinator='),
        (('host:99', 2, None), 'got None of 2; give --process_id'),
        (('host:99', 2, -1), 'process_id must lie in 0 .. processes - 1, got -1 of 2'),
        (('auto', 2, None), '--coordinator=auto finds the processes itself; leave out'),
        (('auto', None, 0), '--coordinator=auto finds the processes itself; leave out'),
    ],
)
def test_flags_that_would_be_ignored_are_refused(given, message):
    for described in (cluster.cluster_of, cluster.find_cluster):
        with pytest.raises(ValueError, match=f'^[^\n]*{re.escape(message)}[^\n]*$'):
            described(*given)
    with pytest.raises(ValueError, match=re.escape(message)), cluster.together(*given):
        pytest.fail('the flags were accepted')


def test_flags_of_one_process_are_accepted():
    for given in (('', None, None), ('', 1, None), ('', 1, 0), ('', None, 0)):
        assert cluster.cluster_of(*given) is None
    assert cluster.cluster_of('host:99', 1, None) == cluster.Cluster('host:99', 1, 0)


@pytest.mark.full
def test_a_search_that_goes_on(tmp_path, monkeypatch):
    """One process begins the search and is stopped; two end it, one of which writes."""
    run = make_run(tmp_path / 'rope', encoding='rope()')
    alone, both = tmp_path / 'alone.json', tmp_path / 'both.json'
    asked = [f'--run={run}', *SMALL]
    assert search.main([*asked, f'--out={alone}']) == 0
    with monkeypatch.context() as patch:
        make = objective.make_objective
        patch.setattr(searches, 'make_objective', lambda *a: interrupted(make(*a), after=6))
        assert search.main([*asked, f'--out={both}']) == 130
    out = together('-m', 'posenc_jax.lab.longrope_search', *asked, f'--out={both}')
    expected, found = (json.loads(path.read_text()) for path in (alone, both))
    assert out.endswith(f'{both}\n{expected["spec"]}\n') and 'continuing after iteration 0' in out
    assert found['iteration'] == expected['iteration'] and found['best'] == expected['best']
    assert found['exact'] == pytest.approx(expected['exact'], rel=1e-5)
