"""Schemas and grammars are enforced token by token in any batch, and excessive ones are refused."""

import json
import time

import jsonschema
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.generate import Generator
from diversity_jax.evaluation.sampling import Sampling
from diversity_jax.serving.access import RequestRefused
from diversity_jax.serving.constraints import MAX_GRAMMAR_CHARACTERS, Grammars, read_grammar
from diversity_jax.tokenizers.tokenizer import for_run, load_tokenizer
from tests.evaluation_items import byte_model
from tests.running_server import post, running
from tests.test_model_gguf import train_sentencepiece
from tests.test_scoring_real_server import train_tokenizer

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "marks": {
            "type": "array",
            "items": {"type": "integer", "minimum": 0, "maximum": 9},
            "minItems": 2,
            "maxItems": 3,
        },
        "kind": {"enum": ["x", "é😀"]},
    },
    "required": ["name", "marks", "kind"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def port():
    with running(byte_model()) as (port, _):
        yield port


def tokenizers_of_all_kinds(folder):
    return {
        "bytes": byte_model().tokenizer,
        "sentencepiece": for_run(load_tokenizer(str(train_sentencepiece(folder / "pieces.model")))),
        "huggingface": for_run(load_tokenizer(str(train_tokenizer(folder / "tokenizer.json")))),
    }


def test_a_schema_that_says_what_holds_anyway_is_enforced():
    items = {"type": "array", "items": {"type": "integer"}, "uniqueItems": False}
    asked, plain = (
        {"guided_json": {"type": "object", "properties": {"a": part}}}
        for part in (items, {name: part for name, part in items.items() if name != "uniqueItems"})
    )
    assert read_grammar(asked) == read_grammar(plain)
    Grammars(byte_model().tokenizer).compile(read_grammar(asked))


@pytest.mark.parametrize("kind", ["bytes", "sentencepiece", "huggingface"])
def test_every_kind_of_tokenizer_writes_what_a_grammar_allows_and_nothing_else(kind, tmp_path):
    import numpy as np

    tokenizer, draw = tokenizers_of_all_kinds(tmp_path)[kind], np.random.default_rng(0)
    plain = {**SCHEMA, "properties": {**SCHEMA["properties"], "kind": {"enum": ["x", "y"]}}}  # in letters all can write
    start = Grammars(tokenizer).compile(read_grammar({"guided_json": plain}))
    for _ in range(5):
        answer, ids = start.copy(), []
        while not answer.finished:
            bits = np.zeros(-(-tokenizer.vocabulary.size // 32), np.uint32)
            answer.fill(bits)
            allowed = np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little"))
            ids.append(int(draw.choice(allowed)))
            assert answer.accept(ids[-1:]) == 1
        jsonschema.validate(json.loads(tokenizer.decode(ids)), plain)


def fits(text):
    jsonschema.validate(json.loads(text), SCHEMA)
    return True


ENFORCED = [
    ({"response_format": {"type": "json_object", "schema": SCHEMA}}, fits),
    ({"response_format": FORMAT}, fits),
    ({"guided_json": json.dumps(SCHEMA)}, fits),
    ({"structured_outputs": {"json": SCHEMA}}, fits),
    ({"structured_outputs": {"json_object": True}}, lambda text: text.startswith("{")),
    ({"guided_choice": ["left", "right\n", 'é "😀" \\/']}, lambda text: text in ("left", "right\n", 'é "😀" \\/')),
    ({"guided_regex": "[a-c]{3}-[0-9]+x"}, lambda text: text[3] == "-" and text[-1] == "x"),
    ({"grammar": 'root ::= "yes" | "no " [0-9]'}, lambda text: text == "yes" or text[:3] == "no "),
]


@pytest.mark.parametrize(
    ("fields", "right"), ENFORCED, ids=lambda value: next(iter(value)) if isinstance(value, dict) else ""
)
def test_the_fields_of_several_servers_are_enforced(port, fields, right):
    for seed in range(3):
        asked = {"model": "tiny", "prompt": "ab", "max_tokens": 200, "seed": seed, "temperature": 0.5, **fields}
        status, answer = post(port, "/v1/completions", asked)
        (choice,) = answer["choices"]
        assert status == 200
        assert choice["finish_reason"] == "stop" or "json_object" in str(fields)  # which may be of any length
        assert right(choice["text"])


def test_choices_of_a_chat_follow_their_schema_whole_and_streamed(port):
    import openai

    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
    asked = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hi"}],
        "response_format": FORMAT,
        "seed": 3,
        "n": 3,
        "max_tokens": 200,
    }
    response = client.chat.completions.create(**asked)
    for choice in response.choices:
        jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    texts = dict.fromkeys(range(3), "")
    for chunk in client.chat.completions.create(stream=True, **asked):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(texts.values()) == [choice.message.content for choice in response.choices]


def test_neighbours_change_no_answer_and_a_schema_changes_no_neighbour():
    model = byte_model()
    start = Grammars(model.tokenizer).compile(read_grammar({"guided_json": SCHEMA}))
    prompt = model.tokenizer.encode("ab")
    settings = [Sampling(max_tokens=200, temperature=1.0, top_p=p, seed=seed) for p in (1.0, 0.7) for seed in range(2)]
    constrained = [(each, start) for each in (*settings, Sampling(max_tokens=200))]
    free = Sampling(max_tokens=200, temperature=1.0, seed=9, ignore_end=True)

    def answers(generator, *pairs):
        requests = [generator.submit(prompt, each, lambda _: None, rule and rule.copy()) for each, rule in pairs]
        while generator.step():
            pass
        return [request.answer.tokens for request in requests]

    together = answers(Generator(model, slots=8, steps=4), *constrained, (free, None))
    token_by_token = Generator(model, slots=8, steps=1)
    assert together == [answers(token_by_token, pair)[0] for pair in (*constrained, (free, None))]
    for tokens in together[:-1]:
        jsonschema.validate(json.loads(model.tokenizer.decode(tokens)), SCHEMA)


REFUSED = [
    ({"guided_json": {"not": {"type": "string"}}}, "Unimplemented keys"),
    ({"guided_json": {"type": "nonsense"}}, "guided_json: "),
    ({"guided_json": "{"}, "is no JSON schema"),
    ({"guided_json": [1]}, "is list; expected a JSON schema"),
    ({"guided_json": False}, "no value fits"),
    ({"guided_json": {"$ref": "file:///etc/passwd"}}, "guided_json: "),
    ({"guided_json": {"$ref": "#"}}, "cannot be followed"),
    ({"guided_json": {"type": "array", "maxItems": 10**40}}, "maxItems"),
    ({"guided_json": {"enum": ["x" * MAX_GRAMMAR_CHARACTERS]}}, "at most 65,536"),
    ({"guided_regex": "(a"}, "unclosed group"),
    ({"guided_regex": 7}, "expected a text"),
    ({"guided_choice": []}, "expected a list of texts"),
    ({"grammar": 'root ::= "a" | ('}, "Expected"),
    ({"guided_json": {}, "regex": "a"}, "each constrain the answer"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "schema is missing"),
    ({"response_format": {"type": "structural_tag"}}, "expected type text"),
    ({"response_format": "json"}, "expected an object"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structural_tag is not supported"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "give one of"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_what_cannot_be_enforced_is_refused_by_name(port, fields, message):
    status, error = post(port, "/v1/completions", {"model": "tiny", "prompt": "ab", **fields})
    assert status == 400
    assert message in error["message"]
    assert error["param"] in fields
    assert "\n" not in error["message"]
    assert ".py" not in error["message"]


HUGE = [
    {"guided_regex": "a{1000000000}"},
    {"guided_regex": "(a{1000}){1000}"},
    {"guided_regex": "(.*a.{200}){20}"},
    {"guided_regex": "(" * 20_000 + "a" + ")" * 20_000},
    {"guided_json": {"type": "string", "pattern": "^(x+x+)+y{100000}$"}},
    {"guided_json": {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 10**9}}},
    {"guided_json": {"type": "object", "patternProperties": {"^" + "a?" * 2000 + "$": {}}}},
    {"guided_json": {"allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {}}} for j in range(8)]} for i in range(8)]}},
    {"guided_json": {"properties": {f"p{number}": {"type": "integer"} for number in range(1000)}}},
    {"grammar": 'start: ("a"{1000000}){1000000}'},
    {"grammar": 'start: start start start | "a"'},
]


@pytest.mark.parametrize("fields", HUGE, ids=lambda value: str(value)[:40])
def test_a_grammar_with_huge_repeats_is_bounded_and_holds_up_nobody(port, fields):
    began = time.process_time()
    status, answer = post(port, "/v1/completions", {"model": "tiny", "prompt": "ab", "max_tokens": 60, **fields})
    assert status in (200, 400)
    assert time.process_time() - began < 20  # of 60 tokens; unbounded, one of them takes minutes
    assert status == 200 or "\n" not in answer["message"]
    assert post(port, "/v1/completions", {"model": "tiny", "prompt": "ab", "max_tokens": 1})[0] == 200


def test_a_constraint_that_fails_on_the_way_fails_its_own_request(port):
    refused = {"guided_regex": "x(a{1000}){1000}"}
    status, error = post(port, "/v1/completions", {"model": "tiny", "prompt": "ab", "max_tokens": 99, **refused})
    assert status == 400
    assert "the grammar cannot be followed further" in error["message"]


def test_a_tokenizer_that_cannot_write_what_is_asked_says_so(tmp_path):
    import tokenizers

    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain.train_from_iterator(
        ["abc"], tokenizers.trainers.BpeTrainer(special_tokens=["<|endoftext|>"], show_progress=False)
    )
    plain.save(str(tmp_path / "tokenizer.json"))
    grammars = Grammars(for_run(load_tokenizer(str(tmp_path / "tokenizer.json"))))
    with pytest.raises(InputError, match="tokenizer cannot be constrained"):
        grammars.compile(read_grammar({"guided_json": SCHEMA}))
    with pytest.raises(RequestRefused, match="give one of"):
        read_grammar({"structured_outputs": {"json": SCHEMA, "choice": ["a"]}})
