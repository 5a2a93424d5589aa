"""Instruction data: every form gives turns, answers are located in any template, and broken records are one line."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.prepare.config import Chat
from diversity_jax.prepare.packing import ExampleEncoder, fill_rows, open_format, pack, split_examples
from diversity_jax.prepare.rows import ID_BITS, START, TARGET
from diversity_jax.tokenizers.chat_template import OWN_TEMPLATE, answer_parts, render_chat, with_system_prompt
from diversity_jax.tokenizers.tokenizer import ByteTokenizer, for_run, turn_ends
from tests.shared_data import shared_file

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% generation %}{{ m['content'] }}{% endgeneration "
    "%}"
    "{{ '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BRACKETS = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content }} {{ eos_token }}{% else %}{{ raise_exception('no ' ~ m.role) "
    "}}{% endif %}{% endfor %}"
)
TURNS = [
    {"role": "user", "content": "Name a colour."},
    {"role": "assistant", "content": "Blue."},
    {"role": "user", "content": "Another? "},
    {"role": "assistant", "content": "Red, then."},
]
FORMS = {
    "alpaca": {"instruction": "Add.", "input": "1 and 2", "output": "3"},
    "messages": {"messages": [{"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}]},
    "shared": {"conversations": [{"from": "human", "value": "Add.\n\n1 and 2"}, {"from": "gpt", "value": "3"}]},
    "flan": {"inputs": "Add.\n\n1 and 2", "targets": "3", "task": "sums"},
    "parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Add.\n\n"}, {"type": "text", "text": "1 and 2"}]},
            {"role": "assistant", "content": "3"},
        ]
    },
    "unanswered end": {
        "messages": [
            {"role": "user", "content": "Add.\n\n1 and 2"},
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "?"},
        ]
    },
}


def corpus(tmp_path, *records, form="auto", **fields):
    path = tmp_path / "examples.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return open_corpus(CorpusConfig(source=str(path), conversations=form, **fields))


def test_every_form_gives_the_same_turns(tmp_path):
    conversations = [document.meta["messages"] for document in corpus(tmp_path, *FORMS.values())]
    assert conversations == [
        [{"role": "user", "content": "Add.\n\n1 and 2"}, {"role": "assistant", "content": "3"}]
    ] * len(FORMS)
    empty = {"system": None, "tools": "[]", "history": [], "system_prompt": ""}
    assert len(list(corpus(tmp_path, *(record | empty for record in FORMS.values())))) == len(FORMS)
    again = {"prompt": "Add.\n\n1 and 2 ", "question": "Sum: Add.\n\n1 and 2", "answer": "3"}
    assert len(list(corpus(tmp_path, *(record | again for record in FORMS.values())))) == len(FORMS)
    assert next(iter(corpus(tmp_path, FORMS["alpaca"]))).text == "Add.\n\n1 and 2\n\n3"
    assert corpus(tmp_path, FORMS["flan"]).fingerprint() != corpus(tmp_path, FORMS["flan"], form="pairs").fingerprint()


def test_columns_of_parquet_are_read_whole(tmp_path):
    import pyarrow
    import pyarrow.parquet

    path = tmp_path / "examples.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([FORMS["messages"]] * 3), path)
    opened = open_corpus(CorpusConfig(source=str(path), conversations="messages"))
    assert [document.meta["messages"] for document in opened] == [FORMS["messages"]["messages"]] * 3
    assert len(opened.sample(2, seed=0)) == 2


BROKEN = {
    "has no messages, or instruction and output, or inputs and targets; its fields: text": {"text": "a story"},
    r"messages\[1\] is an empty answer": {"instruction": "Add.", "output": " \n"},
    r"messages\[0\] is an empty question": {"inputs": "", "targets": "3"},
    "field 'output' holds nothing, not text": {"instruction": "Add.", "output": None},
    r"messages\[0\].role is 'king'; expected one of system": {"messages": [{"role": "king", "content": "Obey."}]},
    r"messages\[0\].role is \['user'\]; expected one": {"messages": [{"role": ["user"], "content": "Obey."}]},
    r"'messages\[0\].content' holds list, not text; remove": {
        "messages": [{"role": "user", "content": [{"image": 1}]}]
    },
    r"'messages\[1\].content' holds nothing, not text; .* max_broken_share": {
        "messages.role": ["user", "assistant"],
        "messages.content": ["Add.", None],
    },
    "nobody answers": {"messages": [{"role": "user", "content": "Anyone?"}]},
    r"field 'messages\[0\].content' holds nothing": {"messages": [{"role": "user"}]},
    r"messages\[0\] is not an object": {"messages": ["hello"]},
    r"messages\[0\].tool_calls: expected functions .* and the role assistant": {
        "messages": [
            {"role": "user", "content": "Look.", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}
        ]
    },
    r"messages\[0\].weight is 0; answers all count 1": {
        "messages": [{"role": "assistant", "content": "No.", "weight": 0}, {"role": "assistant", "content": "Yes."}]
    },
    "field 'system' is not read": FORMS["shared"] | {"system": "Be brief."},
    "field 'history' is not read": FORMS["alpaca"] | {"history": [["Add.", "2"]]},
    "'prompt' says something else than what is read; take one out, or set": FORMS["messages"] | {"prompt": "Count."},
    "'answer' says something else": FORMS["alpaca"] | {"question": "Add.", "answer": "4"},
    "'conversations' says something else": FORMS["shared"] | {"messages": TURNS},
    "lone surrogate": {"inputs": "\ud800", "targets": "3"},
}


@pytest.mark.parametrize(("message", "record"), BROKEN.items())
def test_a_broken_record_is_named_in_one_line_or_counted(tmp_path, message, record):
    with pytest.raises(InputError, match=f"examples.jsonl:2.*{message}") as caught:
        list(corpus(tmp_path, FORMS["flan"], record))
    assert "\n" not in str(caught.value)
    tolerant = corpus(tmp_path, FORMS["flan"], record, max_broken_share=0.5)
    assert len(list(tolerant)) == 1
    assert sum(tolerant.rejected.values()) == 1


@pytest.mark.parametrize(
    "template", [OWN_TEMPLATE, CHATML, BRACKETS, with_system_prompt(OWN_TEMPLATE, 'Be "brief"\n\\ü😀')]
)
def test_parts_join_to_the_text_and_begin_where_a_model_would(template):
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    parts = answer_parts(TURNS, template=template, special=special)
    assert [is_answer for _, is_answer in parts] == [False, True] * 2
    for number, asked in ((2, 1), (4, 3)):
        prompt = render_chat(TURNS[:asked], template=template, special=special)
        assert "".join(text for text, _ in parts[: number - 1]) == prompt
    assert parts[1][0].strip().startswith("Blue.")
    if "brief" in template:
        assert parts[0][0].startswith('Be "brief"\n\\ü😀\n\n### Instruction:')


def test_a_template_that_cannot_be_trained_on_is_refused_in_one_line(tmp_path):
    looks_back = "{% for m in messages %}{{ m.content if loop.last else '...' }}|{% endfor %}"
    expected = {
        "differently when it is to be answered or turns follow": looks_back,
        "leaves out the answer": "{% for m in messages %}{{ m.role }}{% endfor %}",
        "fails on these messages": "{{ messages[0].content + 3 }}",
        "no such file": str(tmp_path / "none.jinja"),
    }
    for line, template in expected.items():
        path = tmp_path / f"{len(template)}.jinja"
        path.write_text(template)
        chosen = template if "none" in template else str(path)
        with pytest.raises(InputError, match=line) as caught:
            ExampleEncoder(ByteTokenizer(), open_format(Chat(template=chosen), ByteTokenizer())).encode(
                [json.dumps(TURNS)]
            )
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="no king"):
        answer_parts(
            [{"role": "tool", "content": "x"}, *TURNS[:2]], template=BRACKETS.replace("no ' ~ m.role", "no king'")
        )
    for spec in ("tokenizer", str(tmp_path)):
        with pytest.raises(InputError, match="has no"):
            open_format(Chat(template=spec), ByteTokenizer())


def test_answers_and_their_ends_are_the_targets_and_nothing_else():
    tokenizer = ByteTokenizer()
    chat = open_format(Chat(), tokenizer)
    (tokens,), (answer_bytes,) = ExampleEncoder(tokenizer, chat).encode([json.dumps(TURNS)])
    is_target = (tokens & TARGET) != 0
    ids = tokens & ID_BITS
    stretches = np.split(ids, np.flatnonzero(np.diff(is_target)) + 1)
    assert [tokenizer.decode(part) for part in stretches[1::2]] == ["Blue.", "Red, then."]
    assert [part[-1] for part in stretches[1::2]] == [1, 1]
    assert np.flatnonzero(tokens & START).tolist() == [0]
    assert answer_bytes == len("Blue.Red, then.")
    model = for_run(tokenizer, vars(chat))
    prompt = model.encode(render_chat(TURNS[:3], template=model.chat_template, special=model.special))
    assert ids[: len(prompt)].tolist() == prompt  # what a model is asked is what it was trained on
    assert model.stop_ids == {1}


def test_an_answer_to_nothing_follows_a_token_and_a_template_without_end_gets_one():
    tokenizer = ByteTokenizer()
    plain = "{% for m in messages %}{{ m.content }}{% endfor %}"
    chat = open_format(Chat(), tokenizer)
    encoder = ExampleEncoder(tokenizer, type(chat)(template=plain, special={}))
    (tokens,), _ = encoder.encode([json.dumps([{"role": "assistant", "content": "Hi."}])])
    assert ((tokens & TARGET) != 0).tolist() == [False, True, True, True, True]
    assert (tokens & ID_BITS)[[0, -1]].tolist() == [1, 1]
    assert turn_ends(tokenizer, plain, {}) == []
    assert turn_ends(tokenizer, plain.replace("}}", "}}<|endoftext|>"), {}) == [1]


@given(st.lists(st.text(st.sampled_from("ab\n<|endoftext|>"), max_size=30), max_size=5))
def test_marks_stand_for_their_ids_and_nothing_is_lost(texts):
    encoded = ByteTokenizer().encode_each(texts, special=True)
    assert [ids.count(1) for ids in encoded] == [text.count("<|endoftext|>") for text in texts]
    assert ["".join("<|endoftext|>" if i == 1 else chr(i - 3) for i in ids) for ids in encoded] == texts


@settings(max_examples=60)
@given(st.lists(st.integers(1, 64), max_size=80), st.integers(64, 200))
def test_packing_keeps_every_example_whole_and_never_needs_many_rows_more_than_it_must(lengths, capacity):
    packed = pack(lengths, capacity)
    assert sorted(number for row in packed for number in row) == list(range(len(lengths)))
    assert all(sum(lengths[number] for number in row) <= capacity for row in packed)
    assert len(packed) <= 11 / 9 * -(-sum(lengths) // capacity) + 2 + len(lengths) // 4
    examples = [np.concatenate([[START | np.uint32(7)], np.full(length - 1, 9, np.uint32)]) for length in lengths]
    rows = fill_rows(examples, packed, capacity, end_of_text_id=1)
    for row, numbers in zip(rows, packed, strict=True):
        in_row = split_examples(row)
        assert [len(example) for example in in_row[: len(numbers)]] == [lengths[number] for number in numbers]
        assert all((example & ID_BITS == 1).all() for example in in_row[len(numbers) :])


def test_rows_are_filled_to_97_percent():
    draw = np.random.default_rng(0)
    lengths = np.clip(draw.lognormal(5.3, 0.8, 5000), 20, 2049).astype(int)
    assert lengths.sum() / len(pack(lengths.tolist(), 2049)) / 2049 > 0.995
    with pytest.raises(ValueError, match="above the capacity"):
        pack([5, 9], 8)


@pytest.mark.parametrize("row_tokens", [2049, 4097])
def test_rows_of_real_instructions_are_filled_to_97_percent(row_tokens):
    path = shared_file("corpora_synthetic/alpaca_part.jsonl.gz")
    conversations = [
        json.dumps(document.meta["messages"])
        for document in open_corpus(CorpusConfig(source=str(path), conversations="alpaca"))
    ]
    tokenizer = ByteTokenizer()
    examples, _ = ExampleEncoder(tokenizer, open_format(Chat(), tokenizer)).encode(conversations[::2])
    lengths = [len(example) for example in examples if len(example) <= row_tokens]
    assert len(lengths) > 0.95 * len(examples)
    assert sum(lengths) / len(pack(lengths, row_tokens)) / row_tokens >= 0.97


CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "</s> Ulm"}'}}
CALLED = [
    {"role": "user", "content": "Is it cold in Ulm?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "-3"},
    {"role": "assistant", "content": "Yes."},
]


def test_tool_calls_are_answers_where_the_template_has_a_place_for_them(tmp_path):
    (document,) = corpus(tmp_path, {"messages": CALLED})
    messages = document.meta["messages"]
    assert messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "</s> Ulm"}
    assert messages[2]["tool_call_id"] == "c1"
    assert '"city": "</s> Ulm"' in document.text
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}"
        "{{ c.function.arguments | tojson }}{% endfor %}|{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    answers = [text for text, is_answer in answer_parts(messages, template=template) if is_answer]
    assert answers == ['weather{"city": "</s> Ulm"}|', "Yes.|"]
    with pytest.raises(InputError, match=r"has no place for the tool calls in messages\[1\]; set chat.template"):
        answer_parts(messages)
    broken = {"messages": [CALLED[0], {**CALLED[1], "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}]}
    with pytest.raises(InputError, match=r"messages\[1\].tool_calls: expected functions with name and arguments"):
        corpus(tmp_path, broken)
