"""Pages of the notebooks, with the outputs that their files keep."""

import pathlib

import nbformat
from nbconvert import MarkdownExporter

FOLDER = pathlib.Path(__file__).parents[1] / 'notebooks'
NOTE = '\n\n*This page is the notebook `notebooks/{name}.ipynb` with the outputs of one run.*\n'


def pages() -> dict[str, str | bytes]:
    """Path below the folder of the site, and Markdown or the bytes of a picture."""
    made: dict[str, str | bytes] = {}
    for path in sorted(FOLDER.glob('*.ipynb')):
        text, pictures = markdown(path)
        made[f'notebooks/{path.stem}.md'] = text
        made |= {f'notebooks/{name}': content for name, content in pictures.items()}
    return made


def markdown(path: pathlib.Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by the names that this Markdown gives them."""
    notebook = nbformat.read(path, as_version=4)
    name = path.stem
    title, rest = notebook.cells[0].source.split('\n', 1)
    notebook.cells[0].source = f'{title}{NOTE.format(name=name)}{rest}'
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={'unique_key': name, 'output_files_dir': '.'}
    )
    return text, {pathlib.PurePosixPath(n).name: data for n, data in resources['outputs'].items()}
