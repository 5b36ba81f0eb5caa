"""How JAX is set up in every test process; before it is imported, since it reads the flags once."""

import gc
import importlib.metadata
import os
import shutil
import tempfile

_FLAGS = [
    '--xla_force_host_platform_device_count=8',  # emulated devices
    '--xla_backend_optimization_level=0',  # tests spend their time compiling, not computing
    '--xla_llvm_disable_expensive_passes=true',
]
if importlib.metadata.version('jaxlib').startswith(
    '0.10.'
):  # a flag that a release does not know ends the process
    _FLAGS.append('--xla_cpu_use_fusion_emitters=false')  # half the time of the whole suite
    _FLAGS.append('--xla_cpu_parallel_codegen_split_count=1')  # both cores test already; 5 %
_given = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = ' '.join(
    [_given, *(flag for flag in _FLAGS if flag.split('=')[0] not in _given)]
).strip()
# What one worker compiled the other reads, and so does a worker that has forgotten it; a folder
# given from outside is kept for the next run, which takes half the time.
_OWN_CACHE = None
if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    _OWN_CACHE = os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(
        prefix='posenc_jax_tests_'
    )
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from tests import array_types  # noqa: E402

# The shapes and dtypes in the annotations of encodings and of what they are made of are checked at
# every call while the tests run. Annotations in the other folders have not been mended for it.
CHECKED = ('mask',)
install_import_hook([f'posenc_jax.{folder}' for folder in CHECKED], f'{array_types.__name__}.check')
pytest.raises = array_types.unchecked(pytest.raises)

from tests.toys import toys  # noqa: E402, F401

gc.set_threshold(
    50_000, 20, 20
)  # each collection also goes through what JAX keeps: 7 % of the time at Python's own thresholds
_TESTS_PER_CACHE = 400
_DONE = pytest.StashKey[int]()


def pytest_unconfigure():
    if _OWN_CACHE is not None:  # workers find it in their environment and leave it
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


def pytest_itemcollected(item):
    """Where a test is expensive for some of its parameters only, `full_where` names them."""
    for mark in item.iter_markers('full_where'):
        if mark.kwargs['condition'](**item.callspec.params):
            item.add_marker('full')


@pytest.fixture(autouse=True)
def forget_compiled_functions(request):
    """Every few hundred tests, since a worker that keeps all that it compiled grows to many
    gigabytes.
    """
    yield
    done = request.config.stash.get(_DONE, 0) + 1
    request.config.stash[_DONE] = done
    if done % _TESTS_PER_CACHE == 0:
        jax.clear_caches()
