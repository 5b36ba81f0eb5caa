"""The extra of the package that brings a library, for the message where one is not installed."""

import contextlib
import importlib.util
from collections.abc import Iterator

# Extra -> a library that its list in requirements/ names -> the module that is imported. Libraries
# that Flax brings are left out.
EXTRAS = {
    'train': {
        'grain': 'grain',
        'matplotlib': 'matplotlib',
        'ml_collections': 'ml_collections',
        'tensorboardX': 'tensorboardX',
    },
    'pretrained': {
        'safetensors': 'safetensors',
        'tokenizers': 'tokenizers',
        'gguf': 'gguf',
        'jinja2': 'jinja2',
    },
    'tfds': {
        'tensorflow-datasets': 'tensorflow_datasets',
        'array_record': 'array_record',
        'importlib_resources': 'importlib_resources',
    },
    'images': {'scikit-learn': 'sklearn', 'pillow': 'PIL'},
}


def need(extra: str) -> None:
    """Checks that the libraries of an extra are installed.

    Raises:
      ModuleNotFoundError: one is not; the message names it and the extra.
    """
    for library, module in EXTRAS[extra].items():
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(_said(library, extra), name=module)


def reason(error: ModuleNotFoundError) -> str | None:
    """Which library is not installed and how it is, in one line; None if no extra brings it.

    Example:
      >>> reason(ModuleNotFoundError(name='PIL.Image'))
      "pillow is not installed; pip install 'posenc_jax[images]'"
    """
    missing = (error.name or '').partition('.')[0]
    for extra, libraries in EXTRAS.items():
        for library, module in libraries.items():
            if module == missing:
                return _said(library, extra)
    return None


def _said(library: str, extra: str) -> str:
    return f"{library} is not installed; pip install 'posenc_jax[{extra}]'"


@contextlib.contextmanager
def explained() -> Iterator[None]:
    """A scope for imports of libraries that an extra brings. Where one is missing, the error names
    the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (said := reason(error)) is None:
            raise
        raise ModuleNotFoundError(said, name=error.name, path=error.path) from None
