"""Settings of JAX and pytest in every test process. The flags are set before JAX is imported,
because JAX reads them only once.
"""

import gc
import importlib.metadata
import os
import shutil
import tempfile

_FLAGS = [
    '--xla_force_host_platform_device_count=8',  # emulated devices
    '--xla_backend_optimization_level=0',  # most of the time of the tests is compilation
    '--xla_llvm_disable_expensive_passes=true',
]
if importlib.metadata.version('jaxlib').startswith(
    ('0.8.', '0.9.', '0.10.')
):  # other releases may not know these flags, and an unknown flag ends the process
    _FLAGS.append('--xla_cpu_use_fusion_emitters=false')  # halves the time of all tests
    _FLAGS.append('--xla_cpu_parallel_codegen_split_count=1')  # both cores are busy; saves 5 %
_given = os.environ.get('XLA_FLAGS', '')
os.environ['XLA_FLAGS'] = ' '.join(
    [_given, *(flag for flag in _FLAGS if flag.split('=')[0] not in _given)]
).strip()
# Emulated devices that outnumber the cores need more threads than XLA starts: layer/sharding.py.
os.environ.setdefault('PJRT_NPROC', '32')
# All workers share one compilation cache, so a function is compiled once, also if a worker has
# cleared its own caches. A folder that the environment names is kept, and halves the next run.
_OWN_CACHE = None


def _memory_with_room(path='/dev/shm', room=8 * 2**30):
    """A folder in memory for the cache, whose many small files are slow on disks; or None."""
    known = os.path.isdir(path) and os.access(path, os.W_OK)
    return path if known and shutil.disk_usage(path).free >= room else None


if 'JAX_COMPILATION_CACHE_DIR' not in os.environ:
    _OWN_CACHE = os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(
        prefix='posenc_jax_tests_', dir=_memory_with_room()
    )
    # To write a program of one operation takes as long as to compile it, and few are read again.
    os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.05')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '-1')
# Programs do not name the source lines of their operations: saves 3 %.
os.environ.setdefault('JAX_TRACEBACK_IN_LOCATIONS_LIMIT', '0')

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

from tests import array_types, ir_context, tiers  # noqa: E402

# While the tests run, the array shapes and dtypes in annotations are checked at every call.
# `array_types` has the rules.
jaxtyping.jaxtyped = array_types.only_with_arrays(jaxtyping.jaxtyped)
jaxtyping.install_import_hook('posenc_jax', f'{array_types.__name__}.check')
pytest.raises = array_types.unchecked(pytest.raises)

ir_context.share()
gc.set_threshold(
    50_000, 20, 20
)  # a collection visits all objects of JAX too: 7 % of the time with Python's default thresholds
_TESTS_PER_CACHE = 800
_DONE = pytest.StashKey[int]()


@pytest.fixture
def toys(monkeypatch):
    """Registers the encodings of `tests/toys.py` while a test runs. They are imported here: the
    process that starts the workers needs no package.
    """
    from posenc_jax.protocol import registry
    from tests.toys import TOYS

    for key, entry in TOYS.items():
        monkeypatch.setitem(registry._ENTRIES, ('encoding', key), entry)


def pytest_collection_finish():
    gc.freeze()  # later collections do not visit the thousands of collected tests again


def pytest_unconfigure():
    if _OWN_CACHE is not None:  # None in workers, which get the folder from the environment
        shutil.rmtree(_OWN_CACHE, ignore_errors=True)


def pytest_addoption(parser):
    text = 'of the tests marked full, run the part K, from 0 to N - 1'
    parser.addoption('--part', default=(0, 1), metavar='K/N', type=tiers.part, help=text)


@pytest.hookimpl(tryfirst=True)  # before the options -m and -k choose among the tests
def pytest_collection_modifyitems(config, items):
    """Slow tests, and some parameters of others, are in the full tier. Of that tier, only the asked
    part stays.
    """
    _mark(items)
    asked, kept, left = config.getoption('part'), [], []
    for item in items:
        ours = not item.get_closest_marker('full') or tiers.is_in(item.nodeid, asked)
        (kept if ours else left).append(item)
    items[:] = kept
    config.hook.pytest_deselected(items=left)


def _mark(items):
    seen, slow = set(), tiers.slow()
    for item in items:
        if item.nodeid in slow:
            item.add_marker('full')
        for mark in item.iter_markers('full_where'):
            if mark.kwargs['condition'](**item.callspec.params):
                item.add_marker('full')
        if item.get_closest_marker('full_but_one') is not None:
            function = item.nodeid.split('[')[0]
            if function in seen:
                item.add_marker('full')
            seen.add(function)


@pytest.fixture(autouse=True)
def forget_compiled_functions(request):
    """Clears the caches of JAX after every few hundred tests, because a worker that keeps all
    compiled functions grows to many gigabytes.
    """
    yield
    done = request.config.stash.get(_DONE, 0) + 1
    request.config.stash[_DONE] = done
    if done % _TESTS_PER_CACHE == 0:
        jax.clear_caches()
