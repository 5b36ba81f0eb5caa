"""The documentation site: what `mkdocs build --strict` shows beside the pages of docs/."""
