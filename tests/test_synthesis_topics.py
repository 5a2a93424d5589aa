"""Reading topics from every file form, and merging of equal subjects."""

import asyncio
import json
from types import SimpleNamespace

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.synthesis.config import SynthesisConfig, TopicsConfig
from diversity_jax.synthesis.topic_deduplication import merge_topics, normalised, same_topic
from diversity_jax.synthesis.topic_expansion import TopicExpander
from diversity_jax.synthesis.topics import Topic, make_topic, read_topics, write_topics
from tests.shared_data import shared_file


def read(tmp_path, name, content, **settings):
    (tmp_path / name).write_text(content)
    return list(read_topics(str(tmp_path / name), **settings))


def test_slash_paths_with_and_without_keywords(tmp_path):
    topics = read(tmp_path, "t.txt", "A/B/C\tone, two\nA / B\n\nTCP\\/IP/Ports\n/\n")
    assert topics == [Topic(("A", "B", "C"), ("one", "two")), Topic(("A", "B")), Topic(("TCP/IP", "Ports"))]
    assert topics[2].slash_path == "TCP\\/IP/Ports"


def test_outlines_by_indentation_and_nested(tmp_path):
    text = "Physics\n  - Optics\n    - Lenses\tglass\n    - Mirrors\n  - Heat\n"
    leaves = [("Physics", "Optics", "Lenses"), ("Physics", "Optics", "Mirrors"), ("Physics", "Heat")]
    assert [topic.path for topic in read(tmp_path, "t.txt", text)] == leaves
    assert len(read(tmp_path, "t.txt", text, leaves_only=False)) == 5
    nested = {"name": "1. Optics", "children": [{"name": "1.1a Lenses", "children": []}, {"name": "Mirrors"}]}
    record = {"field": "Physics", "outline": [nested, {"name": "Heat", "children": []}]}
    assert [topic.path for topic in read(tmp_path, "t.jsonl", json.dumps(record))] == leaves


def test_at_most_five_levels_without_repeats_and_numbers():
    assert make_topic(["a", "A", "Chapter 2: b", "c", "d", "e", "f"]).path == ("a", "b", "d", "e", "f")
    assert make_topic(["3-manifolds"]).path == ("3-manifolds",)
    assert make_topic([" ", "\u200b"]) is None


def test_written_topics_read_back(tmp_path):
    topics = [Topic(("TCP/IP", "Ports"), ("one",)), Topic(("\u00e9t\u00e9",))]
    write_topics(tmp_path / "t.jsonl.zst", topics)
    assert list(read_topics(str(tmp_path / "t.jsonl.zst"))) == topics


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.jsonl", '{"path": ["a"]}\n{"nothing": 1}\n', "t.jsonl:2: has neither"),
        ("t.jsonl", "{", "t.jsonl:1: is not valid JSON"),
        ("t.jsonl", '{"outline": [{"children": []}]}', "has no `name`"),
        ("t.jsonl", '{"path": "a", "keywords": 5}', "t.jsonl:1: `keywords` is int"),
        ("t.csv", "a,b", "of no kind that holds topics"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, words):
    with pytest.raises(InputError, match=words):
        read(tmp_path, name, content)


def test_duplicates_merge_and_keep_keywords():
    topics = [
        Topic(("Physics", "Optics", "Concave mirrors"), ("a",)),
        Topic(("Physics", "Optics", "Concave mirrors"), ("b",)),
    ]
    topics += [
        Topic(("physics", "Optics", "An Introduction to Concave Mirror"), ("c",)),
        Topic(("Physics", "Optics", "Concave mirrrors")),
    ]
    merged = merge_topics(topics)
    assert merged.topics == [Topic(("Physics", "Optics", "Concave mirrors"), ("a", "b", "c"))]
    assert (merged.exact, merged.normalised, merged.near) == (1, 1, 1)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("World War I", "World War II"),
        ("Organic chemistry", "Inorganic chemistry"),
        ("Vitamin A", "Vitamin B"),
        ("Battle of 1812", "Battle of 1813"),
        ("Supply", "Supply and demand"),
        ("Renal anatomy", "Renal physiology"),
        ("Macroeconomics", "Microeconomics"),
        ("Endothermic reactions", "Exothermic reactions"),
        ("Eastern lowland gorilla", "Western lowland gorilla"),
        ("Organic chemistry", "Organic geochemistry"),
        ("中国古代文学史", "中国当代文学史"),
        ("上海", "海上"),
        ("ガラス", "カラス"),
        ("ข่าว", "ข้าว"),
        ("हिंसा", "अहिंसा"),
        ("कर्म", "करम"),
        ("전기화학", "전지화학"),
        ("Органические соединения", "Неорганические соединения"),
        ("វិទ្យាសាស្ត្រ", "វិទ្យាល័យ"),
    ],
)
def test_what_only_looks_alike_stays_apart(a, b):
    first, second = Topic(("Field", a)), Topic(("Field", b))
    assert not same_topic(first, second)
    assert len(merge_topics([first, second], near=0.5).topics) == 2


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("物理和化学", "化学与物理"),
        ("中国的历史", "中国历史"),
        ("日本の歴史", "日本歴史"),
        ("ﾃｰﾌﾞﾙ", "テーブル"),
        ("ประวัติศาสตร์ของดนตรี", "ดนตรี ประวัติศาสตร์"),
        ("भारत का इतिहास", "इतिहास, भारत"),
        ("مَدْرَسَة", "مدرسة"),
        ("한국 음악의 역사", "한국 음악의 역사!"),
        ("Ёлка", "елка"),
    ],
)
def test_names_that_are_one_once_normalised_merge_in_every_script(a, b):
    assert merge_topics([Topic((a,)), Topic((b,))]).normalised == 1


@pytest.mark.parametrize(
    ("line", "path", "keywords"),
    [
        ("第三章：力学\t速度，力、质量；能量", ("力学",), ("速度", "力", "质量", "能量")),
        ("제 2 장 역학", ("역학",), ()),
        ("บทที่ 4: กลศาสตร์", ("กลศาสตร์",), ()),
        ("अध्याय 2: ध्वनि\tतरंग, आवृत्ति", ("ध्वनि",), ("तरंग", "आवृत्ति")),
        ("الفصل 3: الصوت\tموجة، تردد", ("الصوت",), ("موجة", "تردد")),
        ("1.2、力学/3次元", ("力学", "3次元"), ()),
        ("Part2Whole", ("Part2Whole",), ()),
        ("1984 Summer Olympics/3D printing", ("1984 Summer Olympics", "3D printing"), ()),
        ("* 3. Waves/1.1a Sound", ("Waves", "Sound"), ()),
        (" Physics/Optics", ("Physics", "Optics"), ()),
    ],
)
def test_headings_lose_their_numbers_and_keywords_are_split_in_every_script(tmp_path, line, path, keywords):
    assert read(tmp_path, "topics.txt", line) == [Topic(path, keywords)]


def test_equal_names_elsewhere_in_the_tree_stay_apart():
    topics = [Topic((field, "History")) for field in ("Chess", "Bread", "Railways")]
    assert merge_topics(topics).topics == topics
    assert normalised(("Caf\u00e9s", "The Art of Roasting")) == normalised(("cafe", "roasting art"))


def test_real_outlines_lose_little_and_nothing_twice():
    topics = [
        topic
        for topic, _ in zip(read_topics(str(shared_file("topics/course_outlines.jsonl.gz"))), range(4000), strict=False)
    ]
    merged = merge_topics(topics)
    assert merged.read == len(merged.topics) + merged.exact + merged.normalised + merged.near
    assert 0.75 < len(merged.topics) / len({topic.path for topic in topics}) < 1
    assert merge_topics(merged.topics).exact == merge_topics(merged.topics).normalised == 0


class _Answering:
    """An engine whose every completion is one text."""

    def __init__(self, value):
        self._text = json.dumps(value)

    async def complete(self, request):
        return SimpleNamespace(text=self._text, cost_usd=0.0)


def _expander(value):
    return TopicExpander(_Answering(value), SynthesisConfig())


def _extracted(tmp_path, value):
    (tmp_path / "d.txt").write_text("A document.")
    documents, expander = CorpusConfig(source=str(tmp_path / "d.txt")), _expander(value)
    topics = asyncio.run(expander.topics_of_documents(documents, TopicsConfig(levels=2), seed=0))
    return topics, asyncio.run(expander.personas_of_documents(documents, 2, seed=0)), expander


def test_texts_where_lists_were_asked_for_are_not_read_letter_by_letter(tmp_path):
    answer = {"topics": [{"path": "Physics/Optics/Lenses", "keywords": "glass, light"}], "personas": "A reader"}
    topics, personas, expander = _extracted(tmp_path, answer)
    assert topics == [Topic(("Physics", "Optics"), ("glass", "light"))]
    assert personas == []
    assert expander.failures == {"schema": 2}


@pytest.mark.parametrize("name", [None, 3, {"name": "Optics"}])
def test_names_that_are_no_text_are_no_topics(tmp_path, name):
    expander = _expander({"subtopics": [{"name": name, "keywords": []}]})
    assert asyncio.run(expander.expand(["Physics"], 3)) == []
    answer = {"topics": [{"path": ["Physics", name]}], "personas": [name]}
    assert _extracted(tmp_path, answer)[:2] == ([], [])
    assert expander.failures == {"schema": 2}
