"""Notebooks for Colab, whose outputs are kept, and `notebooks.run`, which runs them."""
