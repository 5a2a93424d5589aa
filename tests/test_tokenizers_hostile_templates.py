"""Chat templates that do not end or grow without bound are one line, and the next conversation is rendered."""

import time

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.tokenizers import template_process
from diversity_jax.tokenizers.chat_template import OWN_TEMPLATE, answer_parts, render_chat

TURNS = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": "an answer"}]
PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
PLAIN += "{% if add_generation_prompt %}[assistant]{% endif %}"
DOUBLE = "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
LOOP = "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"
HOSTILE = {
    "loops in loops": LOOP.replace("x", ""),
    "loops that write": LOOP,
    "a number": "{{ (9 ** (9 ** 9)) > 1 }}",
    "a text that doubles": DOUBLE,
    "a list that doubles": DOUBLE.replace("'aa'", "[1]").replace("n.s ~ n.s", "[n.s, n.s]") + "{{ n.s }}",
    "a product": "{{ 'a' * 9000000000 }}",
    "a width": "{{ '{:>9000000000}'.format('a') }}{{ '%9000000000d' % 3 }}",
    "a filter": "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
    "calls in calls": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "more than a text may hold": "{{ 'abc' * 9000000 }}",
    "brackets": "{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}",
}


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(template_process, "MOST_SECONDS", 0.5)
    monkeypatch.setattr(template_process, "_process", template_process._Process())


@pytest.mark.parametrize("name", HOSTILE)
def test_a_template_that_grows_or_runs_for_ever_is_one_line(name):
    with pytest.raises(InputError, match="chat template: fails on these messages") as error:
        render_chat(TURNS, template=HOSTILE[name], add_generation_prompt=False)
    assert "\n" not in str(error.value)
    assert render_chat(TURNS[:1], template=PLAIN) == "[user]a question[assistant]"


def test_an_interruption_leaves_no_answer_to_the_next_conversation(monkeypatch):
    process = template_process._process
    assert render_chat(TURNS[:1], template=PLAIN) == "[user]a question[assistant]"

    class Interrupted:
        def readline(self):
            time.sleep(0.2)  # until the answer is there
            raise KeyboardInterrupt

    monkeypatch.setattr(process._process, "stdout", Interrupted())
    with pytest.raises(KeyboardInterrupt):
        render_chat(TURNS[:1], template=PLAIN)
    assert render_chat([{"role": "user", "content": "another"}], template=PLAIN) == "[user]another[assistant]"


def test_json_in_templates_has_the_options_of_transformers():
    template = "{{ messages | tojson }}{{ messages | tojson(true) }}{{ {'b': 'ä', 'a': 1} | tojson(sort_keys=true) }}"
    text = render_chat(
        [{"role": "user", "content": "ä"}], template=template + "{{ [1, 2] | tojson(separators=(',', ':')) }}"
    )
    content = '[{"role": "user", "content": "%s"}]'
    assert text == content % "ä" + content % "\\u00e4" + '{"a": 1, "b": "ä"}[1,2]'


def test_both_processes_render_alike():
    conversations = [(TURNS, False), (TURNS[:1], True)]
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    here = template_process.render_here(OWN_TEMPLATE, conversations, special)
    assert template_process.render(OWN_TEMPLATE, conversations, special) == here
    assert "".join(text for text, _ in answer_parts(TURNS, template=PLAIN)) == "[user]a question[assistant]an answer"
