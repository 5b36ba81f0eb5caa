"""What several tests of attention need."""

import types

import pytest
from jax._src.cudnn import fused_attention_stablehlo


@pytest.fixture
def some_version(monkeypatch):
    """A version of cuDNN is pretended, since there is no GPU here."""
    version = types.SimpleNamespace(cudnn_get_version=lambda: 91000)
    monkeypatch.setattr(fused_attention_stablehlo, 'cuda_versions', version)
