"""A plugin of pytest: before every test file, the caches of JAX and of the package are cleared, so
that no file uses a value which another one computed.
"""

import functools
import gc

LAST = []


def pytest_runtest_setup(item):
    if LAST != [item.path]:
        import jax

        jax.clear_caches()
        for found in gc.get_objects():
            if isinstance(found, functools._lru_cache_wrapper):
                if (found.__module__ or '').startswith(('posenc_jax', 'tests')):
                    found.cache_clear()
        LAST[:] = [item.path]
