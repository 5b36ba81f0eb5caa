"""Files of `benchmarks/` take no other module's place: a program that is started there finds its
own folder first. And the mutations of `benchmarks/mutations` are found where code has moved.
"""

import ast
import importlib.metadata
import pathlib
import subprocess
import sys

import pytest

from benchmarks.mutations import locate

BENCHMARKS = pathlib.Path(__file__).parents[1] / 'benchmarks'
# `transformers` looks for this package, which need not be installed.
PROBED = {'kernels'}
READS = """
import sys
sys.path[0], sys.modules['pytest'] = sys.argv[1], None
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM
"""


def test_no_file_has_the_name_of_another_module():
    names = {path.stem for path in BENCHMARKS.iterdir() if path.suffix == '.py' or path.is_dir()}
    others = {*importlib.metadata.packages_distributions(), *sys.stdlib_module_names, *PROBED}
    assert {'kernel_table', 'peers', 'fuzz'} <= names and not names & others


@pytest.mark.full
def test_the_model_that_peers_compares_with_is_read_without_pytest():
    pytest.importorskip('torch')
    pytest.importorskip('transformers')
    command = [sys.executable, '-c', READS, str(BENCHMARKS)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=BENCHMARKS.parent)
    assert done.returncode == 0, done.stderr


def test_the_list_of_mutations_has_enough_of_every_area():
    areas = [mutation.area for mutation in locate.mutations()]
    assert areas.count('methods') >= 30 and min(map(areas.count, ('engine', 'lab'))) >= 15


@pytest.mark.parametrize(
    'file, text, line',
    [
        ('methods/near.py', 'x = (a >=\n     b) + (c > a)\ndef allow(): return p.index >= q', 3),
        ('fields/near.py', 'def other(): return p.index >= q', 1),
        ('fields/far.py', 'def allow(): return p.index >= q', 1),
        ('methods/near.py', 'def allow(): return (p.index >= q) + (r.index >= q)', '2 places'),
        ('methods/near.py', 'def allow(): return p.index <= q', 'not found'),
        ('lab/near.py', 'def allow(): return p.index >= q', 'not found'),
    ],
    ids=['there', 'another folder and function', 'another file', 'twice', 'gone', 'another area'],
)
def test_a_mutation_is_found_by_its_expression(tmp_path, file, text, line):
    read = lambda text: ast.parse(text, mode='eval').body
    own = ('off', 'methods/near', 'allow')
    mutation = locate.Mutation(*own, read('A.index >= q'), read('A.index > q'), ())
    path = tmp_path / 'posenc_jax' / file
    path.parent.mkdir(parents=True)
    path.write_text(text)
    found = locate.find(mutation, tmp_path)
    if isinstance(line, str):
        assert found == line
    else:
        assert (found.path, found.node.lineno) == (path, line)
        assert locate.changed(mutation, found) == text.replace('p.index >= q', '(p.index > q)')
