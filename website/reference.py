"""Pages of the API reference, one for each public package, whose text mkdocstrings takes from the
docstrings.
"""

import pkgutil

import posenc_jax

TOP = """# posenc_jax

The names below are those of `import posenc_jax as pj`.
"""
# The members of a module are on the page of its package.
PACKAGE = """::: {name}
    options:
      heading_level: 1
      show_submodules: true
"""


def packages() -> list[str]:
    """The public packages and modules below `posenc_jax`, by name."""
    found = pkgutil.iter_modules(posenc_jax.__path__, 'posenc_jax.')
    return sorted(module.name for module in found if not module.name.endswith('.version'))


def top_level() -> list[str]:
    """The public classes and functions of `posenc_jax` itself."""
    return [name for name in posenc_jax.__all__ if callable(getattr(posenc_jax, name))]


def pages() -> dict[str, str]:
    """Path below the folder of the site, and Markdown, of all pages of the reference."""
    modules = {name.removeprefix('posenc_jax.') for name in packages()}
    # `posenc_jax.language.catalog` is a function and a package.
    paths = [f'{name}.{name}' if name in modules else name for name in top_level()]
    top = [TOP, *(f'::: posenc_jax.{path}\n' for path in paths)]
    made = {f'reference/{name}.md': PACKAGE.format(name=name) for name in packages()}
    return {'reference/posenc_jax.md': '\n'.join(top), **made}
