"""A command line is refused in one line."""

import pytest

from posenc_jax.base.programs import printable
from posenc_jax.lab.files.command import Parser, in_line, read_letters
from tests.lab.train import tiny

WHOLE, FINITE = 'expected a whole number of 32 bits, got ', 'expected a finite number, got '
WRONG = {  # arguments -> what the message says
    '--count=1e400': f"argument --count: {WHOLE}'1e400'",
    '--count=2147483648': f"argument --count: {WHOLE}'2147483648'",
    '--count=' + '9' * 5000: f"argument --count: {WHOLE}'999",
    '--share=1e400': f"argument --share: {FINITE}'1e400'",
    '--share=nan': f"argument --share: {FINITE}'nan'",
    '--share=' + 'é\n' * 5000: f'argument --share: {FINITE}',
    '--nosuch|' + 'x\ny' * 5000: 'unrecognized arguments: --nosuch x y',
    '--kind=c': "argument --kind: invalid choice 'c'; valid: 'a', 'b'",
}


@pytest.mark.parametrize('arguments', WRONG)
def test_one_line(capsys, arguments):
    parser = Parser('program')
    parser.add_argument('--count', type=int)
    parser.add_argument('--share', type=float)
    parser.add_argument('--kind', choices=('a', 'b'))
    with tiny.stopped():
        parser.parse_args(arguments.split('|'))
    shown = capsys.readouterr().err
    assert shown.startswith(f'program: error: {WRONG[arguments]}')
    assert len(shown.splitlines()) == 1 and len(shown) < 1000
    assert parser.parse_args(['--count=-2147483647', '--share=1e-3']).share == 1e-3


def test_defaults_say_the_types_of_options():
    parser = Parser('program')
    parser.add_defaults(
        {
            'steps': 3,
            'rate': (0.5, 'of training'),
            'fast': False,
            'sizes': [1],
            'set': [],
            'to': None,
        }
    )
    parser.add_choices({'groups': ('a', 'b')})
    usual = vars(parser.parse_args([]))
    assert usual == dict(
        steps=3, rate=0.5, fast=False, sizes=[1], set=[], to=None, groups=['a', 'b']
    )
    words = '--steps=4 --rate=1 --fast --sizes 2 3 --set a=1 --to=x --groups b'
    assert vars(parser.parse_args(words.split())) == dict(
        steps=4, rate=1.0, fast=True, sizes=[2, 3], set=['a=1'], to='x', groups=['b']
    )


@pytest.mark.parametrize('given', ['--' + 'x' * 5000, 'x' * 5000, f'--tokens={"x" * 5000}'])
def test_what_the_user_gave_is_shortened(capsys, given):
    parser = Parser('program')
    parser.add_argument('--tokens', type=int)
    with pytest.raises(SystemExit):
        parser.parse_args([given])
    said = capsys.readouterr().err
    assert said.count('\n') == 1 and 'xxx…xxx' in said and len(said) < 300


def test_a_message_is_one_line_of_bounded_length():
    assert in_line(OSError(36, 'File name too long', 'x' * 5000)).startswith('[Errno 36] File name')
    assert len(in_line(OSError(36, 'File name too long', 'x' * 5000))) < 250
    assert in_line('one\r\ntwo\x0bthree') == 'one two three'
    assert len(in_line('word ' * 5000)) < 2010


def test_a_similar_option_is_proposed():
    parser = Parser('program')
    parser.add_argument('--tokens', type=int)
    assert parser.near('--max_new_tokens=8') == '; did you mean --tokens?'
    assert parser.near('--token') == '; did you mean --tokens?'
    assert parser.near('--colour=red') == ''


def test_what_is_not_printed_is_escaped(capsys):
    for text, shown in (
        ('plain, é, 漢字', 'plain, é, 漢字'),
        ('a\nb\r\x1b[2J\x00\x9b', r'a\nb\r\x1b[2J\x00\x9b'),
        ('\u202e\u2028\udcff', r'\u202e\u2028\udcff'),  # directions, lines, bytes of a name
        (r'a\n', r'a\n'),
        (ValueError('a\nb'), r'a\nb'),
    ):
        assert printable(text) == shown
    with pytest.raises(SystemExit):
        Parser('program').error('no file \x1b[31m')
    assert capsys.readouterr().err == 'program: error: no file \\x1b[31m\n'


def test_letters_of_a_file_are_bounded(tmp_path):
    (tmp_path / 'a.txt').write_text('abc\n')
    assert read_letters(tmp_path / 'a.txt', most=4) == 'abc\n'
    with pytest.raises(ValueError, match=r'a\.txt has more than 3 letters, the most that are read'):
        read_letters(tmp_path / 'a.txt', most=3)


def test_programs_print_an_error_on_one_line(capsys, monkeypatch):
    from posenc_jax.lab.cli import train
    from posenc_jax.lab.cluster import cluster

    monkeypatch.setattr(cluster, 'leave', int)
    with pytest.raises(SystemExit):
        train.stop(ValueError('x\ny\x1b[31m.txt is not text'), 2)
    assert cluster.failed('eval.py', ValueError('x\ny\x1b[31m.txt is not text')) == 2
    said = r'x y\x1b[31m.txt is not text'
    assert capsys.readouterr().err == f'train.py: {said}\neval.py: {said}\n'
