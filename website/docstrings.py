"""What the API reference changes in docstrings: `Example:` becomes the section `Examples:`, whose
`>>>` lines are shown as code.
"""

import re

import griffe


class ExampleSections(griffe.Extension):
    """An extension of griffe, which reads the docstrings for mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Renames the headings of the examples in the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = with_sections(obj.docstring.value)


def with_sections(text: str) -> str:
    """A docstring with the heading of its examples in the plural.

    Example:
      >>> with_sections('Adds.\\n\\nExample:\\n  >>> 1 + 1\\n  2')
      'Adds.\\n\\nExamples:\\n  >>> 1 + 1\\n  2'
    """
    return re.sub(r'^( *)Example:$', r'\1Examples:', text, flags=re.MULTILINE)
