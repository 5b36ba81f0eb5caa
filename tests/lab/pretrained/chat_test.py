"""Chat templates: the texts and tokens of `transformers`, the places where a checkpoint has one,
and refused templates.
"""

import json
import sys

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

from posenc_jax.lab.pretrained import chat
from posenc_jax.lab.pretrained.chat import ChatTemplate, directory_template
from posenc_jax.lab.pretrained.sources import PretrainedError

# In the manner of ChatML: a system message of its own, the tag `generation`, trimmed lines.
MARKED = """{%- if messages[0].role != 'system' %}
    {{- '<s>system\nBe brief.</s>\n' }}
{%- endif %}
{% for message in messages %}
    {% if message.role == 'tool' %}{% continue %}{% endif %}
    {{- '<s>' + message['role'] + '\n' }}
    {% generation %}{{ message.content | trim }}{% endgeneration %}
    {{- eos_token + '\n' }}
{% endfor %}
{%- if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"""
# In the manner of Llama 2: turns that alternate, a namespace, JSON, and no tools.
TURNS = """{{ bos_token }}{% set ns = namespace(turns=0) %}
{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Turns must alternate') }}
{% endif %}
{% set ns.turns = ns.turns + 1 %}
{% if message['role'] == 'user' %}[INST] {{ message['content'] }} [/INST]{% else %}
 {{ message['content'] | tojson }}{{ eos_token }}{% endif %}
{% endfor %}{% if tools is not none %}{{ tools | tojson }}{% endif %}({{ ns.turns }})"""
TALKS = (
    [{'role': 'user', 'content': ' What is <b> & "é"? '}],
    [
        {'role': 'user', 'content': 'One'},
        {'role': 'assistant', 'content': 'Two'},
        {'role': 'user', 'content': 'Three\n'},
    ],
)
MANY = '{% for i in range(99999) %}'
TOKENS = {'bos_token': '<s>', 'eos_token': '</s>'}


def tokenizer():
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE({token: i for i, token in enumerate(letters)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(token, special=True) for token in TOKENS.values()])
    made.post_processor = processors.TemplateProcessing(
        single=['<s>', '$A'], special_tokens=[('<s>', made.token_to_id('<s>'))]
    )
    return made


@pytest.fixture(scope='module')
def theirs():
    transformers = pytest.importorskip('transformers', reason='parity needs transformers')
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer(), **TOKENS)


@pytest.mark.parametrize('answer', [True, False])
@pytest.mark.parametrize('template', [MARKED, TURNS], ids=['marked', 'turns'])
def test_texts_are_those_of_transformers(theirs, template, answer):
    for messages in TALKS:
        wanted = theirs.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=answer
        )
        assert ChatTemplate(template, TOKENS).render(messages, answer=answer) == wanted


def test_tokens_are_those_of_transformers(theirs, tmp_path):
    """The template writes the token that begins a text, so the tokenizer must not add another."""
    from posenc_jax.lab.tasks.language.vocabulary import Tokens

    tokenizer().save(str(tmp_path / 'tokenizer.json'))
    (tmp_path / 'config.json').write_text('{"model_type": "llama", "vocab_size": 258}')
    (tmp_path / 'model.safetensors').write_bytes((2).to_bytes(8, 'little') + b'{}')
    wanted = theirs.apply_chat_template(TALKS[0], chat_template=TURNS, return_dict=False)
    ours = Tokens(str(tmp_path))
    written = ChatTemplate(TURNS, TOKENS).render(TALKS[0], answer=False).encode()
    assert ours.encode(written, begins=False).tolist() == wanted
    assert ours.encode(written).tolist() == [wanted[0], *wanted]


def test_a_directory_has_a_file_a_field_or_a_named_list(tmp_path):
    assert directory_template(tmp_path) is None
    fields = {'bos_token': {'content': '<s>'}, 'eos_token': None}
    put = lambda **more: (tmp_path / 'tokenizer_config.json').write_text(json.dumps(fields | more))
    rendered = lambda: directory_template(tmp_path).render([])
    put()
    assert directory_template(tmp_path) is None
    put(chat_template='{{ bos_token }}field')
    assert rendered() == '<s>field'
    named = [{'name': 'tool_use', 'template': 'tools'}, {'name': 'default', 'template': 'list'}]
    put(chat_template=named)
    assert rendered() == 'list'
    (tmp_path / 'chat_template.jinja').write_text('{{ bos_token }}file')
    assert rendered() == '<s>file'
    (tmp_path / 'chat_template.jinja').unlink()
    put(chat_template=named[:1])
    with pytest.raises(PretrainedError, match="has the names .'tool_use'., expected one named"):
        directory_template(tmp_path)


@pytest.mark.parametrize(
    'message, template',
    {
        'cannot be read: ': '{% for %}',
        'fails: No system here': '{{ raise_exception("No system here") }}',
        "fails: .*attribute '__class__'": '{{ messages.__class__.__mro__ }}',
        'fails: .*zero': '{{ 1 // 0 }}',
        'fails: Range too big': '{% for i in range(10**9) %}{% endfor %}',
        'needs more than 1024 MiB of memory': "{{ 'a' * 10**10 }}",  # while it is compiled
        'fails: it needs more than 1024 MiB': '{{ messages | string | center(10**10) }}',
        'fails: its text is longer than 16777216 characters': (
            f"{MANY}{{{{ 'a' * 10**5 }}}}{{% endfor %}}"
        ),
        'fails: .*recursion': '{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}',
        r'fails: \\x1b\[31mred': r'{{ raise_exception("\x1b[31mred") }}',
        "chat_template='', expected a text of 1 to 1048576 characters": '',
        'chat_template=3, expected a text': 3,
    }.items(),
)
def test_wrong_templates_are_one_line(template, message):
    with pytest.raises(PretrainedError, match=f'here: .*{message}') as found:
        ChatTemplate(template, {}, 'here').render([])
    assert '\n' not in str(found.value)


@pytest.mark.parametrize(
    'template',
    [
        '{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}',
        '{% macro f(n) %}{% if n %}{{ f(n - 1) ~ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}',
        '{{ 10 ** (10 ** 10) }}',  # one operation of Python, which no handler of signals interrupts
    ],
)
def test_templates_that_do_not_end_are_ended(template, monkeypatch):
    monkeypatch.setattr(chat, 'SECONDS', 1)
    with pytest.raises(
        PretrainedError, match='here: the chat template fails: it did not end within 1 seconds of'
    ):
        ChatTemplate(template, {}, 'here').render([])


def test_a_process_that_gets_no_processor_is_ended(monkeypatch):
    monkeypatch.setattr(chat, 'PATIENCE', 0)
    with pytest.raises(PretrainedError, match='fails: it did not end within 0 seconds$'):
        ChatTemplate('{{ messages }}', {}).render([])


def test_a_missing_library_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, 'jinja2', None)
    said = r"jinja2 is not installed; pip install 'posenc_jax\[pretrained\]'$"
    with pytest.raises(PretrainedError, match=said):
        ChatTemplate('{{ messages }}', {})
