"""A small checkpoint that our own export wrote."""

import pytest

from posenc_jax.lab.pretrained import export_pretrained
from tests.lab.pretrained.load_test import LLAMA, model_of


@pytest.fixture
def llama(tmp_path):
    return export_pretrained(model_of(**LLAMA), tmp_path / 'llama')
