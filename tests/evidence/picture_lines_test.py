"""Below each picture of the pages stands the command that draws it."""

import pathlib
import shlex

import pytest

from evidence.claims import pictures
from evidence.experiments import __main__ as experiments
from evidence.experiments import sweep
from posenc_jax.lab.analyse.__main__ import ANALYSES
from posenc_jax.lab.cli.eval import arguments

DOCS = pathlib.Path(__file__).parents[2] / 'docs'
PAGES = pictures.pages(DOCS)


@pytest.mark.parametrize('page', PAGES, ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_the_lines_below_pictures_are_up_to_date(page):
    text = page.read_text(encoding='utf-8')
    assert pictures.captioned(text, page.parent.name) == text, 'run `python -m evidence.claims`'
    assert text.count('.png)\n\nDrawn by `') == text.count('![')


def test_every_picture_of_the_pages_has_a_command_and_no_other():
    found = [*DOCS.glob('results/*/*.png'), *DOCS.glob('guides/*/*.png')]
    there = {str(path.relative_to(DOCS)) for path in found}
    drawn_with_pages = {'claims', 'headline'}
    assert there == pictures.COMMANDS.keys() - drawn_with_pages and len(there) >= 30


@pytest.mark.parametrize('file', pictures.COMMANDS)
def test_the_commands_can_be_read(file):
    found = pictures.COMMANDS[file]
    python, *words = shlex.split(found['by'])
    assert python == 'python' and found.keys() <= {'by', 'kept', 'older'}
    if words[0] == 'eval.py':
        assert arguments(words[1:])[0]
    elif words[1] == 'posenc_jax.lab.analyse':
        assert words[2] in ANALYSES and words[2] in file
    elif words[1] == 'evidence.experiments':
        assert words[2] in experiments.names()
        if sweeps := sweep.read(words[2]):
            options = sweeps[words[3]].parse(words[4:])
            folders = [str(options.workdir / name) for name in sweeps[words[3]].evaluation]
            assert folders == [found['kept']]
    else:
        assert words == ['-m', 'evidence.claims']


def test_a_page_gets_its_captions_once_and_a_picture_without_a_command_is_refused():
    line = 'Drawn by `python -m evidence.claims`.'
    once = f'a\n\n![b](c.png)\n\n{line}\n\n![d](e.png)\n\n{line}\n\nf ![g](h.png)\n'
    page = 'a\n\n![b](c.png)\n![d](e.png)\n\nf ![g](h.png)\n'
    assert pictures.captioned(page, 'claims') == pictures.captioned(once, 'claims') == once
    assert pictures.captioned('![b](../claims/c.png)\n', 'results').endswith(f'png)\n\n{line}\n')
    # The last line of a page need not end.
    assert pictures.captioned('![b](../claims/c.png)', 'results').endswith(f'png)\n\n{line}\n')
    old = once.replace('python -m evidence.claims', 'python old.py')
    assert pictures.captioned(old, 'claims') == once
    with pytest.raises(ValueError, match='^results/new.png: .*pictures.toml has no command'):
        pictures.captioned('![b](new.png)\n', 'results')
