"""What the API reference changes in docstrings and annotations.

`Example:` becomes the section `Examples:`, whose `>>>` lines are shown as code. The shapes of
jaxtyping, such as 'N' in `Float[Array, 'N']`, keep their quotes; griffe takes them for names.
"""

import re

import griffe

DTYPES = ('Bool', 'Float', 'Int', 'Num', 'Shaped', 'UInt32')


class Docstrings(griffe.Extension):
    """An extension of griffe, which reads the code for mkdocstrings."""

    def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
        """Renames the headings of the examples in the docstring of an object."""
        if obj.docstring is not None:
            obj.docstring.value = with_sections(obj.docstring.value)

    def on_function(self, *, func: griffe.Function, **kwargs) -> None:
        """Quotes the shapes in the annotations of a function."""
        for parameter in func.parameters:
            quote_shapes(parameter.annotation)
        quote_shapes(func.returns)

    def on_attribute(self, *, attr: griffe.Attribute, **kwargs) -> None:
        """Quotes the shape in the annotation of an attribute."""
        quote_shapes(attr.annotation)


def quote_shapes(annotation: griffe.Expr | str | None) -> None:
    """Writes the shapes of array types as strings again, in place."""
    if not isinstance(annotation, griffe.Expr):
        return
    if isinstance(annotation, griffe.ExprSubscript) and str(annotation.left) in DTYPES:
        parts = annotation.slice
        if isinstance(parts, griffe.ExprTuple) and len(parts.elements) == 2:
            shape = str(parts.elements[1])
            if shape[:1] not in ('"', "'"):
                parts.elements = [parts.elements[0], repr(shape)]
    for child in annotation.iterate(flat=False):
        if child is not annotation:  # a name yields itself
            quote_shapes(child)


def with_sections(text: str) -> str:
    """A docstring with the heading of its examples in the plural.

    Example:
      >>> with_sections('Adds.\\n\\nExample:\\n  >>> 1 + 1\\n  2')
      'Adds.\\n\\nExamples:\\n  >>> 1 + 1\\n  2'
    """
    return re.sub(r'^( *)Example:$', r'\1Examples:', text, flags=re.MULTILINE)
