"""Pages of the API reference, one for each public package, whose text mkdocstrings takes from the
docstrings.
"""

import pkgutil

import posenc_jax
import posenc_jax.lab

TOP = """# posenc_jax

The names below are those of `import posenc_jax as pj`.
"""
_INTERNAL = [['version'], ['moved'], ['console'], ['lab']]  # modules that have no page
# The members of a module are on the page of its package.
PACKAGE = """::: {name}
    options:
      heading_level: 1
      show_submodules: true
"""


def packages() -> list[str]:
    """The public packages and modules below `posenc_jax` and `posenc_jax.lab`, by name."""
    found = [
        module.name
        for package in (posenc_jax, posenc_jax.lab)
        for module in pkgutil.iter_modules(package.__path__, f'{package.__name__}.')
    ]
    return sorted(name for name in found if name.split('.')[1:] not in _INTERNAL)


def top_level() -> list[str]:
    """The public classes and functions of `posenc_jax` itself."""
    return [name for name in posenc_jax.__all__ if callable(getattr(posenc_jax, name))]


def pages() -> dict[str, str]:
    """Path below the folder of the site, and Markdown, of all pages of the reference."""
    top = [TOP, *(f'::: posenc_jax.{name}\n' for name in top_level())]
    made = {f'reference/{name}.md': PACKAGE.format(name=name) for name in packages()}
    return {'reference/posenc_jax.md': '\n'.join(top), **made}
