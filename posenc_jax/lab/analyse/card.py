"""The Card of an analysis."""

from posenc_jax.protocol.card import Card, Promises


def analysis_card(name: str, example: str, use_when: str, *, causal_only: bool = False) -> Card:
    """The Card of an analysis. The arguments are those of `Card`; `example` is a call in Python.
    There is no equation among them: the code with which a paragraph of the docstring begins is it.
    """
    return Card(
        name=name,
        example=example,
        use_when=use_when,
        door='analysis',
        causal_only=causal_only,
        promises=Promises(sweep_free=False, blockwise=False),
    )
