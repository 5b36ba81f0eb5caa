"""Files of `benchmarks/` take no other module's place: a program that is started there finds its
own folder first.
"""

import importlib.metadata
import pathlib
import subprocess
import sys

import pytest

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
