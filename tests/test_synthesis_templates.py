"""Templates: requests, checks of answers, and rendering to text."""

import contextlib
import copy
import dataclasses
import json
import random
import re

import jsonschema
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.prepare.deduplicate import MinHasher, NearDuplicateIndex
from diversity_jax.synthesis.config import QualityConfig
from diversity_jax.synthesis.generate_round import PERMUTATIONS
from diversity_jax.synthesis.quality import Flaw, read_answer, render
from diversity_jax.synthesis.templates import TEMPLATES, Seeds, load_template
from diversity_jax.synthesis.topics import Topic
from tests.synthesis_answers import words_for, write
from tests.words_by_language import WORDS, as_text, random_words

SEEDS = Seeds(
    topics=(Topic(("Physics", "Optics"), ("lens",)), Topic(("Bread",))),
    style="wikihow",
    personas=("A baker", "A diver"),
    avoid=("Prisms",),
)


def request_of(template, seeds=SEEDS):
    return template.request(seeds, replicate=0, max_output_tokens=100, temperature=1.0, limits=False)


def answer_to(template, seed=0):
    return write("optics", random.Random(seed), persona="personas" in template.used, topics="topics" in template.used)


def check(value, template=TEMPLATES["topic"], **quality):
    text = value if isinstance(value, str) else json.dumps(value)
    return read_answer(text, template, SEEDS, request_of(template), QualityConfig(**quality))


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_every_template_asks_for_what_it_varies_and_reads_its_answer(name):
    template = TEMPLATES[name]
    request = request_of(template)
    asked = request.system + request.user
    assert request.stage == f"generate_{name}"
    assert ("numbered steps" in asked) == ("styles" in name)
    assert ("A diver" in asked) == ("persona" in name)
    assert ("Bread" in asked) == name.startswith("multi")
    assert "Prisms" in asked
    assert "{" not in asked
    made = check(answer_to(template), template)
    jsonschema.validate(answer_to(template), request.schema)
    assert made.persona == ("A baker" if "persona" in name else None)
    assert len(made.passages) == 3
    assert made.question.answer in made.question.options


def test_topics_without_keywords_can_be_asked():
    assert "choose fitting ones" in request_of(TEMPLATES["topic"], Seeds(topics=(Topic(("Physics",)),))).user


def broken(**changes):
    value = answer_to(TEMPLATES["topic"])
    question = value["question"] | changes.pop("question", {})
    return value | {"question": question} | changes


# Options that stand nowhere else in a rendered question; which words the made answers have depends on what ran before.
PLACED = {"options": ["qanat", "qibla", "qorma", "qubit"], "answer": "qorma"}


FIRST = copy.deepcopy(answer_to(TEMPLATES["topic"]))["passages"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("{", "not_json"),
        ("I'm sorry, but I can't help with that.", "refused"),
        (
            broken(
                passages=[
                    {"concepts": ["x"], "text": "As an AI language model I cannot. " + FIRST[0]["text"]},
                    *FIRST[1:],
                ]
            ),
            "refused",
        ),
        ([], "schema"),
        (broken(passages=FIRST[:2]), "schema"),
        (broken(extra=1), "schema"),
        (broken(passages=[{"text": FIRST[0]["text"]}, *FIRST[1:]]), "schema"),
        (broken(passages=[{"concepts": ["x"], "text": "too short"}, *FIRST[1:]]), "short"),
        (broken(question={"answer": "something else"}), "answer_not_an_option"),
        (broken(question={"options": ["one", "One", "two", "three"], "answer": "two"}), "options"),
        (broken(question={"options": ["one", "two"], "answer": "two"}), "schema"),
        (broken(question={"explanation": "\ud800 lone"}), "schema"),
    ],
)
def test_the_quality_floor_names_the_flaw(value, reason):
    with pytest.raises(Flaw) as raised:
        check(value)
    assert raised.value.reason == reason


@pytest.mark.parametrize("language", WORDS)
def test_lengths_in_words_mean_the_same_in_every_language(language):
    def passages(words):
        text = as_text(random_words(random.Random(words), language, words), language)
        return broken(passages=[{"concepts": ["x"], "text": text}] * 3)

    for words, reason in ((18, "short"), (30, None), (80, None), (140, "long")):
        with pytest.raises(Flaw) if reason else contextlib.nullcontext() as raised:
            check(passages(words), max_passage_words=105)
        assert raised is None or raised.value.reason == reason


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "Es tut mir leid, aber dabei kann ich nicht helfen.",
        "Lo siento, pero no puedo escribir sobre ese tema.",
        "Désolé, mais je ne peux pas répondre à cette demande.",
        "Desculpe, mas não posso ajudar com isso.",
        "Извините, но я не могу выполнить эту просьбу.",
        "Maaf, saya tidak dapat membantu permintaan ini.",
        "Xin lỗi, tôi không thể giúp việc này.",
        "很抱歉，我无法提供这方面的内容。",
        "作為一個語言模型，這個問題超出範圍。",
        "申し訳ありませんが、その内容にはお答えできません。",
        "죄송하지만 그 요청은 도와드릴 수 없습니다.",
        "ขออภัยค่ะ ฉันไม่สามารถเขียนเรื่องนี้ได้",
        "ຂໍອະໄພ ຂ້ອຍບໍ່ສາມາດຊ່ວຍໄດ້",
        "សូមអភ័យទោស ខ្ញុំមិនអាចជួយបានទេ",
        "मुझे खेद है, मैं इस विषय में सहायता नहीं कर सकता।",
        "عذرًا، لا أستطيع المساعدة في هذا الطلب.",
        "متأسفم، نمی\u200cتوانم در این باره کمک کنم.",
    ],
)
def test_refusals_are_known_in_many_languages(text):
    with pytest.raises(Flaw) as raised:
        check(text)
    assert raised.value.reason == "refused"
    with pytest.raises(Flaw) as raised:
        check(broken(passages=[{"concepts": ["x"], "text": f"{text} {FIRST[0]['text']}"}, *FIRST[1:]]))
    assert raised.value.reason == "refused"


@pytest.mark.parametrize("language", WORDS)
def test_passages_of_any_language_are_no_refusals(language):
    source = random.Random(0)
    for _ in range(20):
        text = as_text(random_words(source, language, 60), language)
        check(broken(passages=[{"concepts": ["x"], "text": text}] * 3))


def test_passages_copied_from_the_prompt_are_refused():
    copied = request_of(TEMPLATES["topic"]).system[:700]
    with pytest.raises(Flaw) as raised:
        check(broken(passages=[{"concepts": ["x"], "text": copied}] * 3), max_passage_words=900)
    assert raised.value.reason == "copied_from_prompt"


def test_json_in_a_fence_is_read():
    assert check(f"```json\n{json.dumps(answer_to(TEMPLATES['topic']))}\n```").question is not None


def test_rendering_is_seeded_varied_and_keeps_the_answer():
    made = check(answer_to(TEMPLATES["topic"]))
    texts = {render(made, seed=str(number)) for number in range(60)}
    assert len(texts) > 50
    assert render(made, seed="7") == render(made, seed="7")
    for text in texts:
        assert text.startswith("\n\n".join(made.passages))
        assert all(option in text for option in made.question.options)
        assert made.question.explanation in text


def test_options_keep_their_places_where_the_explanation_names_them():
    value = broken(question=PLACED | {"explanation": "Option (B) fails because of heat, so the answer is C."})
    options = value["question"]["options"]
    for number in range(20):
        text = render(check(value), seed=str(number)).split(value["question"]["question"])[1]
        positions = [text.index(option) for option in options]
        assert positions == sorted(positions)


@pytest.mark.parametrize(
    ("explanation", "keeps"),
    [
        ("所以选项B是对的。", True),
        ("答案是C，因为水会流动。", True),
        ("（２）が正しい。", True),
        ("選択肢のうち最後のものです。", True),
        ("정답은 2번입니다.", True),
        ("ข้อ ข ถูกต้อง", True),
        ("विकल्प तीन सही है।", True),
        ("الخيار الأول خاطئ.", True),
        ("La opción B es falsa.", True),
        ("La première option est juste.", True),
        ("因为水会流动，山不会。", False),
        ("ข้อมูลนี้มาจากหนังสือ", False),
        ("क्योंकि पानी बहता है।", False),
        ("Because water flows.", False),
    ],
)
def test_places_of_options_are_seen_in_explanations_of_many_languages(explanation, keeps):
    value = broken(question=PLACED | {"explanation": explanation})
    options = value["question"]["options"]
    orders = set()
    for number in range(12):
        text = render(check(value), seed=str(number)).split(value["question"]["question"])[1]
        orders.add(tuple(sorted(options, key=text.index)))
    assert (len(orders) == 1) == keeps


@pytest.mark.parametrize(
    ("passage", "heading"),
    [
        ("水往低处流，山不动。H2O是水的化学式，英文叫water。", "答|正解"),
        ("水は低いところへ流れ、山は動かない。", "答え|正解|解答"),
        ("물은 흐르고 산은 움직이지 않는다.", "답|정답"),
        ("น้ำไหลลงที่ต่ำ", "คำตอบ|เฉลย"),
        ("पानी नीचे बहता है।", "उत्तर"),
        ("الماء يجري إلى أسفل.", "الإجابة|الجواب"),
        ("آب به پایین می\u200cرود و کوه نمی\u200cرود.", None),
        ("Вода течёт вниз.", None),
        ("Water of temperature θ flows down, said Poincaré.", "Answer|answer|Key|Solution"),
    ],
)
def test_questions_are_written_in_the_language_of_the_passages(passage, heading):
    value = broken(passages=[{"concepts": ["x"], "text": passage}] * 3)
    made = check(value, min_passage_words=1, near_duplicate=None)
    for number in range(20):
        asked = render(made, seed=str(number)).removeprefix("\n\n".join(made.passages))
        assert bool(re.search("Answer|answer|Key|Solution", asked)) == (heading is not None and "Answer" in heading)
        assert heading is None or re.search(heading, asked)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"user": None}, "has no field 'user'"),
        ({"extra": 1}, "field 'extra' is unknown"),
        ({"name": 3}, "field 'name' is int"),
        ({"user": "about {thing}"}, "placeholder {thing} is unknown"),
        ({"user": "about nothing"}, "names no topic"),
        ({"user": "about {topic"}, "write a brace"),
        ({"passages": [5, 3]}, "the fewest and the most"),
        ({"plain_text": True}, "plain_text leaves no place for more than a passage"),
    ],
)
def test_a_template_file_with_a_fault_is_named(tmp_path, changes, words):
    value = {"name": "mine", "system": "Write.", "user": "About {topic} for {personas}."} | changes
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({name: item for name, item in value.items() if item is not None}))
    with pytest.raises(InputError) as raised:
        load_template(str(path))
    assert words in str(raised.value)
    assert "mine" in str(raised.value)


def test_a_template_file_without_a_question(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(
        json.dumps({"name": "mine", "system": "Write.", "user": "{topic}", "passages": [1, 2], "question": False})
    )
    template = load_template(str(path))
    made = check({"passages": [{"concepts": ["x"], "text": FIRST[0]["text"]}]}, template)
    assert render(made, seed="0") == FIRST[0]["text"]


def test_a_template_in_plain_text_takes_the_answer_as_it_is(tmp_path):
    path = tmp_path / "mine.json"
    form = {"passages": [1, 1], "question": False, "plain_text": True}
    path.write_text(json.dumps({"name": "mine", "system": "Write.", "user": "{topic}", **form}))
    template = load_template(str(path))
    assert request_of(template).schema is None
    made = check(f"  {FIRST[0]['text']}\n", template)
    assert render(made, seed="0") == FIRST[0]["text"]
    assert made.concepts == ((),)
    thoughtful = check(f"<think>What do they want?</think>\n\n{FIRST[0]['text']}", template)
    assert render(thoughtful, seed="0") == FIRST[0]["text"]
    for answer, reason in (
        ("", "schema"),
        (f"<think>{FIRST[0]['text']}", "schema"),
        ("Too short.", "short"),
        ("I'm sorry, but I can't help with that.", "refused"),
    ):
        with pytest.raises(Flaw) as raised:
            check(answer, template)
        assert raised.value.reason == reason
    assert template.hash != dataclasses.replace(template, plain_text=False).hash


def test_near_duplicates_are_found_across_rounds_and_others_are_not():
    draw = random.Random(0)
    texts = [" ".join(draw.choices(words_for("w", 400), k=200)) for _ in range(300)]
    hasher = MinHasher(0.6, permutations=PERMUTATIONS)
    index = NearDuplicateIndex(hasher)
    for number, text in enumerate(texts):
        index.add(number, hasher.signature(text))
    for number in range(0, 300, 10):
        words = texts[number].split()
        words[100] = "changed"
        assert index.near(hasher.signature(" ".join(words)))[0] == number
    assert index.near(hasher.signature(" ".join(draw.choices(words_for("other", 400), k=200)))) is None
    assert hasher.signature("") is not None
