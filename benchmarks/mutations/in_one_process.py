"""A plugin of pytest. Before every test file, the caches of JAX and of the package are cleared, so
that no file uses a value which another one computed. Where `MUTATION_JOBS` names a file of jobs, a
session runs the tests of each job while the functions of one module have the code of a mutation.
"""

import functools
import gc
import importlib
import json
import os
import pathlib
import time
import types

LAST = []


def forget():
    import jax

    gc.unfreeze()  # `tests/conftest.py` hides what was collected
    jax.clear_caches()
    for found in gc.get_objects():
        if isinstance(found, functools._lru_cache_wrapper):
            if (found.__module__ or '').startswith(('posenc_jax', 'tests')):
                found.cache_clear()


def pytest_runtest_setup(item):
    if LAST != [item.path]:
        forget()
        LAST[:] = [item.path]


def codes(code: types.CodeType) -> list[types.CodeType]:
    """The code of a module and of all functions in it, in the order of the source."""
    inner = (const for const in code.co_consts if isinstance(const, types.CodeType))
    return [code, *(found for const in inner for found in codes(const))]


def swapped(module: types.ModuleType, before: str, after: str) -> list:
    """Gives the functions of a module the code of another source, and returns how they were."""
    path, loader = module.__file__, module.__spec__.loader
    read = lambda source: codes(loader.source_to_code(source.encode(), path))
    pairs = [(old, new) for old, new in zip(read(before), read(after), strict=True) if old != new]
    was = []
    gc.unfreeze()
    for function in gc.get_objects():
        if isinstance(function, types.FunctionType) and function.__code__.co_filename == path:
            for old, new in pairs:
                if function.__code__ == old:
                    was.append((function, function.__code__))
                    function.__code__ = new
                    break
    return was


def failing(session, items) -> str | None:
    """The first test that fails."""
    from _pytest.runner import runtestprotocol

    for item, following in zip(items, [*items[1:], None]):
        if any(report.failed for report in runtestprotocol(item, log=False, nextitem=following)):
            session._setupstate.teardown_exact(None)
            return item
    return None


def pytest_runtestloop(session):
    if 'MUTATION_JOBS' not in os.environ:
        return None
    file = pathlib.Path(os.environ['MUTATION_JOBS'])
    for job in json.loads(file.read_text()):
        chosen = [
            item
            for files, words in job['runs']
            for item in session.items
            if str(item.path) in files and (not words or any(word in item.nodeid for word in words))
        ]
        module = importlib.import_module(job['module'])
        was = swapped(module, job['before'], job['after'])
        assert was, f'no function of {job["module"]} has changed'
        forget()
        begun = time.monotonic()
        found = failing(session, chosen)
        for function, code in was:
            function.__code__ = code
        forget()
        seconds = round(time.monotonic() - begun)
        if found is not None and failing(session, [found]) is not None:
            found = None  # it fails without the change too
        with file.with_suffix('.found').open('a') as out:
            out.write(json.dumps([job['name'], found and found.nodeid, seconds]) + '\n')
    return True
