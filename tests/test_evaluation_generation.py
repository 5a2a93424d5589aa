"""Generation: cached decoding equals recomputation, answers are independent, and text ends where it should."""

import dataclasses
import functools
import json

from hypothesis import given
from hypothesis import strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.config import EvaluateConfig, GenerateTextConfig
from diversity_jax.evaluation.generate import Generator
from diversity_jax.evaluation.generation_request import TextStream
from diversity_jax.evaluation.run import generate_text, read_prompts, refuse_existing
from diversity_jax.evaluation.sampling import Sampling, sample_tokens
from diversity_jax.model import MeshConfig, logits
from diversity_jax.tokenizers.chat_template import OWN_TEMPLATE, render_chat
from tests.evaluation_items import byte_model
from tests.small_llama import random_params

PROMPTS = [np.random.default_rng(n).integers(3, 259, n).tolist() for n in (1, 2, 31, 34, 130, 200)]


@functools.lru_cache(maxsize=1)
def _generator():
    return Generator(byte_model(), slots=8, steps=4)


@functools.lru_cache(maxsize=1)
def _recompute():
    """Log-probabilities after the first n tokens of a row, without any cache."""
    model = byte_model()
    params = jax.tree.map(jnp.asarray, random_params(model.config))
    compiled = jax.jit(lambda row, n: jax.nn.log_softmax(logits(model.config, params, row)[0, n - 1])[:259])

    def after(ids):
        row = np.zeros((1, model.config.max_length), np.int32)
        row[0, : len(ids)] = ids
        return np.asarray(compiled(row, len(ids)))

    return after


def test_greedy_answers_equal_recomputing_token_by_token():
    answers = _generator().generate(PROMPTS, Sampling(max_tokens=10, ignore_end=True, top_logprobs=3))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = list(prompt)
        for token, scored in zip(answer.tokens, answer.logprobs, strict=True):
            expected = _recompute()(ids)
            assert token == expected.argmax()
            assert scored.logprob == pytest.approx(expected[token], abs=1e-4)
            assert [token_id for token_id, _ in scored.top] == np.argsort(-expected, kind="stable")[:3].tolist()
            ids.append(token)
        assert answer.finish_reason == "length"


def test_a_mesh_that_cuts_weights_and_rows_gives_the_same_tokens():
    sampling = Sampling(max_tokens=8, ignore_end=True)
    cut = Generator(byte_model(MeshConfig(data=2, fsdp=2, tensor=2)), slots=8, steps=4).generate(PROMPTS, sampling)
    assert [answer.tokens for answer in cut] == [answer.tokens for answer in _generator().generate(PROMPTS, sampling)]


def test_sampled_answers_depend_on_their_seed_and_on_nobody_else():
    sampling = [
        Sampling(max_tokens=8, temperature=1.0, top_k=50, top_p=0.9, seed=n, ignore_end=True)
        for n in range(len(PROMPTS))
    ]
    together = _generator().generate(PROMPTS, sampling)
    alone = [
        _generator().generate([prompt], settings)[0]
        for prompt, settings in reversed(list(zip(PROMPTS, sampling, strict=True)))
    ]
    assert [answer.tokens for answer in together] == [answer.tokens for answer in alone[::-1]]
    same = _generator().generate([PROMPTS[3]] * 2, sampling[:2])
    assert same[0].tokens != same[1].tokens


@functools.lru_cache(maxsize=1)
def _draw():
    return jax.jit(sample_tokens)


def test_filters_keep_what_they_say_and_temperature_has_its_distribution():
    shares = np.array([0.5, 0.25, 0.15, 0.1])
    rows = 4000
    scores = np.tile(np.log(shares), (rows, 1)).astype(np.float32)

    def counts(temperature, top_k, top_p):
        settings = {
            "temperature": np.full(rows, temperature, np.float32),
            "top_k": np.full(rows, top_k, np.int32),
            "top_p": np.full(rows, top_p, np.float32),
            "seed": np.arange(rows, dtype=np.uint32),
        }
        drawn = np.asarray(_draw()(scores, np.zeros(rows, np.int32), settings))
        return np.bincount(drawn, minlength=4) / rows

    assert counts(0, 0, 1).tolist() == [1, 0, 0, 0]
    assert counts(1, 0, 1) == pytest.approx(shares, abs=0.04)
    assert counts(0.5, 0, 1) == pytest.approx(shares**2 / (shares**2).sum(), abs=0.04)
    assert counts(1, 2, 1) == pytest.approx([2 / 3, 1 / 3, 0, 0], abs=0.04)
    assert counts(1, 0, 0.8) == pytest.approx(np.array([0.5, 0.25, 0.15, 0]) / 0.9, abs=0.04)
    assert counts(1, 0, 0.01).tolist() == [1, 0, 0, 0]


BYTES = st.text(st.sampled_from("abé€😀 \n"), max_size=12)


@given(BYTES, st.lists(BYTES.filter(bool), max_size=3))
def test_a_stream_shows_whole_characters_and_ends_before_the_first_stop_text(text, stop):
    stream = TextStream(lambda ids: bytes(ids).decode(errors="replace"), stop)
    shown = ""
    for byte in text.encode():
        stream.add(byte)
        new = stream.take()
        shown += new
        assert "\ufffd" not in new
        if stream.stopped:
            break
    stream.finish()
    shown += stream.take(last=True)
    ends_and_starts = [(text.find(part) + len(part), text.find(part)) for part in stop if part in text]
    ends = min(ends_and_starts, default=(0, len(text)))[0]  # the stop text that is complete first
    expected = text if not ends_and_starts else text[: min(start for end, start in ends_and_starts if end == ends)]
    assert shown == stream.text == expected


def test_stop_texts_and_lengths_end_answers():
    free = _generator().generate([PROMPTS[2]], Sampling(max_tokens=30, ignore_end=True))[0]
    stop = free.text[5:7]
    cut = _generator().generate([PROMPTS[2]], Sampling(max_tokens=30, ignore_end=True, stop=(stop,)))[0]
    assert cut.text == free.text[: free.text.find(stop)]
    assert cut.finish_reason == "stop"


def test_what_does_not_fit_is_refused_before_anything_runs():
    generator = _generator()
    for prompt, tokens, message in (
        ([], 4, "empty"),
        ([5] * 250, 10, "context holds 256"),
        ([260], 1, "outside the model's vocabulary"),
    ):
        with pytest.raises(InputError, match=message):
            generator.generate([prompt], Sampling(max_tokens=tokens))
    for settings in (
        {"max_tokens": -1},
        {"max_tokens": 2**31},
        {"max_tokens": 4, "min_tokens": 5},
        {"temperature": -1},
        {"top_p": 0},
        {"top_k": -1},
        {"top_k": 2**31},
        {"temperature": 10**400},
        {"top_p": float("nan")},
        {"stop": ("",)},
        {"top_logprobs": 99},
    ):
        with pytest.raises(InputError):
            Sampling(**settings)
    assert generator.load == 0


def test_a_file_of_answers_is_not_replaced_unasked(tmp_path):
    config = GenerateTextConfig(output=str(tmp_path / "answers.jsonl"))
    refuse_existing(config)
    (tmp_path / "answers.jsonl").write_text("")
    with pytest.raises(InputError, match="is there already"):
        refuse_existing(config)
    refuse_existing(dataclasses.replace(config, overwrite=True))


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(
        json.dumps({"prompt": "ab"}) + "\n" + json.dumps({"messages": [{"role": "user", "content": "hi"}]}) + "\n"
    )
    config = GenerateTextConfig(max_tokens=4, samples=2, temperature=1.0)
    answers = generate_text(byte_model(), read_prompts(str(path)), config)
    assert [line.get("prompt") for line in answers] == ["ab", "ab", None, None]
    assert all(line["tokens"] <= 4 for line in answers)
    for wrong in ({"messages": []}, {"prompt": "a" * 300}):
        with pytest.raises(InputError, match="prompt 2 of 2"):
            generate_text(byte_model(), [{"prompt": "ab"}, wrong], config)
    path.write_text('{"prompt": 3}\n')
    with pytest.raises(InputError, match=r"prompts.jsonl:1: expected an object"):
        read_prompts(str(path))
    path.write_text('{"prompt": "ab", "messages": null}\n{"prompt": "ab", "messages": []}\n')
    with pytest.raises(InputError, match=r'prompts.jsonl:2: has both "prompt" and "messages"; take one out'):
        read_prompts(str(path))


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({"prompt": "caf\udce9"}, "prompt: holds a lone surrogate"),  # a terminal's Latin-1
        ({"messages": []}, "at least one"),
    ],
    ids=str,
)
def test_prompts_that_hold_no_text_are_refused(prompt, message):
    with pytest.raises(InputError, match=message):
        generate_text(byte_model(), [prompt], GenerateTextConfig(system_prompt="Be brief."))


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_the_harness_cannot_take_are_refused(seed):
    with pytest.raises(InputError, match=f"seed={seed}: must be"):
        EvaluateConfig(seed=seed)


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi\n"},
    {"role": "assistant", "content": "Hello."},
]


def test_the_own_template_can_be_read_back():
    text = render_chat(CONVERSATION, special={"eos_token": "<e>"}, add_generation_prompt=False)
    assert text == "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello."
    asked = render_chat([*CONVERSATION, {"role": "user", "content": "Bye"}], special={"eos_token": "<e>"})
    assert (
        asked
        == "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello.<e>\n\n### Instruction:\nBye\n\n### Response:\n"
    )
    assert "{{" in OWN_TEMPLATE


def test_a_tokenizers_template_runs_in_a_sandbox_and_its_failure_is_one_line():
    turns = "{% for m in messages %}<{{ m['role'] }}>\n{{ m['content'] }}{% endfor %}"
    loops = "{{ bos_token }}" + turns + "{% if add_generation_prompt %}<assistant>{% endif %}"
    assert render_chat(CONVERSATION[1:2], template=loops, special={"bos_token": "^"}) == "^<user>\nHi\n<assistant>"
    broken = {
        "{{ raise_exception('no system role') }}": "no system role",
        "{% for %}": "line 1",
        "{{ messages[9].content.x }}": "fails on these messages",
        "{{ ''.__class__.__mro__ }}": "unsafe",
        "{# nothing #}": "renders these messages to nothing",
        "{{ 1 / 0 }}": "division",
    }
    for template, message in broken.items():
        with pytest.raises(InputError, match=message) as caught:
            render_chat(CONVERSATION, template=template)
        assert "\n" not in str(caught.value)
    for messages, message in (
        ([], "at least one"),
        ([{"role": "king", "content": ""}], r"\[0\].role"),
        ([{"role": "user"}], r"\[0\].content"),
    ):
        with pytest.raises(InputError, match=message):
            render_chat(messages)
