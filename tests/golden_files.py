"""Numbers from elsewhere, in `tests/golden/`; each file says where they come from."""

import json
import pathlib
from typing import Any


def golden(name: str) -> dict[str, Any]:
    """What the file of a method holds."""
    return json.loads((pathlib.Path(__file__).parent / 'golden' / f'{name}.json').read_text())
