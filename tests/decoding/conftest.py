"""The small encodings of the model's tests are also at hand for those of decoding."""

from tests.model.conftest import toys  # noqa: F401
