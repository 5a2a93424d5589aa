"""Pages of runs and scorings follow from their files, and missing or broken files are named."""

from fractions import Fraction
from html.parser import HTMLParser
import json
from pathlib import Path
import re

import numpy as np
import pytest

from diversity_jax.cluster_agent import AgentConfig, Scorecard, examine
from diversity_jax.core import run_info
from diversity_jax.core.errors import InputError
from diversity_jax.llm import EndpointConfig
from diversity_jax.mixtures.mixture import MixtureComponent
from diversity_jax.report.pages import audit, mixture, score, training_run
from diversity_jax.scoring.audit import AuditResult
from diversity_jax.scoring.config import ScoreConfig
from diversity_jax.training import log as training_log
from tests import example_run
from tests.faulty_judges import exam_judge


class _Outline(HTMLParser):
    """Tags and attributes of a page, its text, and whether every element was closed in order."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "br", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        assert "svg" in self._open, f"<{tag}/> in HTML"
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def _read(path: Path) -> _Outline:
    return _Outline(path.read_text(encoding="utf-8"))


def _check_self_contained(outline: _Outline) -> None:
    assert not set(outline.tags) & {"script", "img", "iframe", "object", "embed", "base", "form"}
    for name, value in outline.attributes:
        assert not name.startswith("on")
        assert name != "src"
        assert name != "href" or value == "data:,"[: len(value)] or value.startswith("#")
        assert "url(http" not in value


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    return example_run.write_run(tmp_path_factory.mktemp("run") / "a run", groupings=400)


@pytest.fixture(scope="module")
def page_path(run_dir) -> Path:
    return training_run.write(run_dir)


def test_run_page_says_the_verdict_and_shows_every_section(run_dir, page_path):
    outline = _read(page_path)
    _check_self_contained(outline)
    scorecard = Scorecard.load(run_dir / "scorecards" / "few_topics.json")
    assert "3 of 4 components registered; few_topics rejected: 4" in outline.text
    assert f"{scorecard.effective_clusters.low:.3g}" in outline.text
    assert "Held-out loss fell from 5.58 to 2.85 nats a token over 300 steps" in outline.text
    assert "2.46 M tokens were trained on" in outline.text
    for title in ("Gate decisions", "Clusters", "Example clusters", "Token shares", "Loss", "Speed", "Facts"):
        assert title in outline.text
    for fact in (
        "offline (no LLM)",
        "offline-1",
        scorecard.content_hash,
        "--config.train.steps=300",
        "jax 0.10.2",
        "2 cores",
    ):
        assert fact in outline.text
    figures = sorted(path.name for path in (run_dir / "figures").iterdir())
    assert figures == [
        f"{name}.{ending}" for name in ("clusters", "gate", "loss", "shares", "speed") for ending in ("png", "svg")
    ]
    assert outline.tags.count("svg") == len(figures)  # each once for wide and once for narrow screens
    assert len([value for name, value in outline.attributes if name == "id"]) == len(
        {value for name, value in outline.attributes if name == "id"}
    )


def test_sentences_of_a_page_stand_apart(page_path):
    prose = re.findall(r"<(?:p|figcaption)[^>]*>(.*?)</(?:p|figcaption)>", page_path.read_text(), re.DOTALL)
    assert len(prose) > 10
    assert [text for text in prose if re.search(r"[a-z]{2}\.[A-Z]", text)] == []


def test_a_page_depends_on_its_files_alone(run_dir, page_path):
    first = page_path.read_bytes()
    assert training_run.write(run_dir).read_bytes() == first


def test_realised_shares_are_those_of_the_rows_read(run_dir):
    run = training_run.read(run_dir)
    granted = {component.name: float(component.share_granted) for component in run.mixture.components}
    assert granted["web"] == pytest.approx(0.5)
    assert run.realised["web"] == pytest.approx(0.5, abs=1e-4)
    assert run.realised.get("few_topics", 0) == 0
    assert run.tokens == 300 * example_run.BATCH * example_run.SEQUENCE_LENGTH
    figures = [mixture.gate_figures(component, run.scorecards) for component in run.mixture.components]
    [required] = {decision.required for decision in figures if decision.required}
    assert required == pytest.approx(0.5 * run.scorecards["web"].effective_clusters.value)


def test_missing_pieces_are_said_and_the_rest_is_shown(tmp_path):
    built = example_run.write_mixture(tmp_path / "mixture", groupings=60, scorecards=False)
    outline = _read(training_run.write(tmp_path))
    assert "Nothing has been trained on it yet" in outline.text
    assert "No scorecard lies beside the mixture" in outline.text
    assert "nothing has been trained yet" in outline.text
    assert "no run.json" in outline.text

    alone = tmp_path / "alone"
    alone.mkdir()
    example_run.write_log(alone, built, steps=20)
    outline = _read(training_run.write(alone))
    assert (
        "Held-out loss is" in outline.text
        or "Held-out loss fell" in outline.text
        or "Training loss fell" in outline.text
    )
    assert "There is no mixture.json" in outline.text
    assert "many_topics" in outline.text

    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"empty: holds neither mixture\.json nor metrics\.jsonl"):
        training_run.write(tmp_path / "empty")
    with pytest.raises(InputError, match=r"empty: holds no mixture\.json"):
        training_run.write(alone, mixture_dir=tmp_path / "empty")


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("metrics.jsonl", '{"step": 1, "loss": 2}\nnot json\n', r"metrics\.jsonl:2: is not valid JSON"),
        ("metrics.jsonl", '{"loss": 2}\n', r'metrics\.jsonl:1: expected an object with a whole number "step"'),
        ("metrics.jsonl", '{"step": NaN}\n', r'metrics\.jsonl:1: expected an object with a whole number "step"'),
        ("run.json", "{}", r"run\.json: is not a run's record"),
        ("run.json", '{"command": 1, "settings": {}, "versions": {}, "hardware": ""}', r"run\.json: command is int"),
        ("mixture.json", "{", r"mixture\.json:1: is not valid JSON"),
        ("scorecards/web.json", "[]", r"web\.json: is not a scorecard"),
        ("components/web/manifest.json", "{}", r"manifest\.json: is not a component manifest"),
    ],
)
def test_broken_files_are_named(tmp_path, file, content, says):
    example_run.write_run(tmp_path, groupings=40)
    (tmp_path / file).write_text(content)
    with pytest.raises(InputError, match=says):
        training_run.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_a_scorecard_that_was_not_decided_by_is_refused(tmp_path):
    example_run.write_run(tmp_path, groupings=40)
    example_run.make_scorecard("web", 9, groupings=40).save(tmp_path / "scorecards" / "web.json")
    with pytest.raises(InputError, match=r"web\.json: is not the scorecard that the decision on web rests on"):
        training_run.write(tmp_path)


def test_a_resumed_log_holds_what_was_written_last(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": 10, "loss": 5.0, "rows/a": 10},
        {"step": 10, "eval/loss": 5.5},
        {"step": 20, "loss": 4.0, "rows/a": 20},
        {"step": 30, "loss": 3.0},
        {"step": 10, "eval/loss": 5.4},
        {"step": 20, "loss": None},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 30, "lo')
    log = training_log.read(path)
    np.testing.assert_array_equal(log.steps, [10, 20])
    np.testing.assert_array_equal(log.seen("loss")[1], [5.0])
    np.testing.assert_array_equal(log.seen("eval/loss")[1], [5.4])
    assert log.components("rows/") == ["a"]
    assert log.components("eval/", "/loss") == []
    np.testing.assert_array_equal(log.seen("nothing")[0], [])


def test_score_page_of_one_corpus(tmp_path):
    scorecard = example_run.make_scorecard("persona_chat", 500, groupings=300)
    scorecard.save(tmp_path / "scorecard.json")
    outline = _read(score.write(tmp_path, [tmp_path / "scorecard.json"]))
    _check_self_contained(outline)
    assert re.search(r"persona_chat holds \d+ effective clusters \[\d+, [\d,]+\]\.", outline.text)
    for title in ("Clusters", "Convergence", "Example clusters", "Criteria", "The judge", "Facts"):
        assert title in outline.text
    assert "a baseline, no stand-in" in outline.text
    drawn = [f"{name}.{ending}" for name in ("clusters", "convergence") for ending in ("png", "svg")]
    assert sorted(path.name for path in (tmp_path / "figures").iterdir()) == drawn


def test_score_page_compares_and_decides(tmp_path):
    scorecards = {
        name: example_run.make_scorecard(name, true, groupings=300) for name, true in (("a", 50), ("b", 5), ("c", 5))
    }
    outline = _read(score.write(tmp_path, scorecards))
    assert "a reads as the most diverse" in outline.text
    assert "2 of 3 differences are decided" in outline.text
    assert outline.text.count("a is more diverse") == 2
    assert "not decided" in outline.text
    assert "widened for 3 comparisons" in outline.text


def test_scores_of_different_rulers_are_not_compared(tmp_path):
    scorecard = example_run.make_scorecard("b", 5, groupings=50)
    other = Scorecard(
        **{name: value for name, value in vars(scorecard).items() if name != "content_hash"} | {"ruler": "another"}
    )
    outline = _read(score.write(tmp_path, {"a": scorecard, "b": other}))
    assert "cannot be compared" in outline.text
    assert "not comparable: different rulers" in outline.text


def test_hostile_texts_stay_texts(tmp_path):
    scorecard = example_run.make_hostile_scorecard()
    outline = _read(
        score.write(tmp_path, {example_run.HOSTILE: scorecard, "b": example_run.make_scorecard("b", 5, groupings=50)})
    )
    _check_self_contained(outline)
    assert outline.tags.count("style") == 1
    assert outline.text.count("<script>alert(1)</script>") >= 8
    assert not any(character in outline.text for character in "\u202e\x00")


def test_no_scorecard_is_an_error(tmp_path):
    with pytest.raises(InputError, match="no scorecard to show"):
        score.write(tmp_path, {})


def test_scorecards_of_one_name_are_numbered(tmp_path):
    for number in range(3):
        example_run.make_scorecard("web", 5 + number, groupings=40).save(tmp_path / f"{number}.json")
    assert list(score.load(sorted(tmp_path.glob("*.json")))) == ["web", "web (2)", "web (3)"]


def test_a_bound_alone_is_said_as_such(tmp_path):
    scorecard = example_run.make_scorecard("a", 100_000, groupings=40, samples=4)
    assert scorecard.effective_clusters.high is None
    outline = _read(score.write(tmp_path, {"a": scorecard}))
    assert "a holds at least" in outline.text


def test_record_keeps_command_and_versions_and_no_password(tmp_path):
    argv = ["/x/diversity_jax/train.py", "--config", "a b.py", "--config.judge_base_url=http://me:secret@host:8000/v1"]
    record = run_info.describe(argv, {"judge_base_url": "http://me:secret@host/v1", "ratio": (4, 1), "nothing": None})
    record.save(tmp_path)
    assert run_info.RunInfo.load(tmp_path / "run.json") == record
    assert (
        record.command == "python -m diversity_jax.train --config 'a b.py' --config.judge_base_url=http://host:8000/v1"
    )
    assert record.settings == {"judge_base_url": "http://host/v1", "ratio": [4, 1], "nothing": None}
    assert "numpy" in record.versions
    assert "secret" not in (tmp_path / "run.json").read_text()


def test_record_keeps_no_header_and_no_key_of_an_endpoint():
    config = ScoreConfig(
        judge_base_url="https://h/v1?api-version=7&sig=secret1",
        judge_endpoint=EndpointConfig(headers=("X-Team: secret2",), query="code=secret3", body='{"a": 1}'),
    )
    words = [
        "--config.judge_base_url=https://h/v1?subscription-key=secret4",
        "--config.judge_endpoint.headers=X: secret5",
    ]
    argv = ["score", *words, "--config.judge_endpoint.query", "secret6", "--config.seed=3"]
    record = run_info.describe(argv, config)
    assert "secret" not in record.command + json.dumps(record.settings)
    assert record.command.endswith("--config.judge_endpoint.query '***' --config.seed=3")
    assert record.settings["judge_base_url"] == "https://h/v1?api-version=7&sig=***"
    assert record.settings["judge_endpoint"]["headers"] == ["X-Team: ***"]


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("/x/diversity_jax/diversity_jax/study/__main__.py", "python -m diversity_jax.study --a"),
        ("/x/diversity_jax/mixtures/build.py", "python -m diversity_jax.mixtures.build --a"),
        ("scripts/benchmarks/bench_loader.py", "python scripts/benchmarks/bench_loader.py --a"),
        ("/bin/diversity-jax-lm-eval", "/bin/diversity-jax-lm-eval --a"),
    ],
)
def test_a_command_is_kept_as_it_is_typed(file, says):
    assert run_info.describe([file, "--a"], {}).command == says


def test_the_verdict_names_what_was_not_simply_registered():
    def decide(name: str, action: str, **more) -> MixtureComponent:
        measured = {"value": 4.1, "low": 3.8, "high": 4.5}
        decision = {"action": action, "reason": "", "effective_clusters": measured} | more
        share = Fraction(1, 2)
        return MixtureComponent(
            name=name, kind="synthetic", share_asked=share, share_granted=share, decision=decision, manifest=None
        )

    ratio = {"value": 0.05, "low": 0.04, "high": 0.06}
    decisions = [
        decide("web", "register"),
        decide("few-topics", "reject", ratio=ratio, reference="real"),
        decide("code", "ungated"),
    ]
    assert mixture.verdict(decisions) == (
        "2 of 3 components registered; few-topics rejected: 4.1 effective clusters [3.8, 4.5], 0.05 of real text."
    )
    assert "x rejected: not scored" in mixture.verdict([decide("x", "reject", effective_clusters=None)])
    assert "x with a warning: 4.1 effective clusters" in mixture.verdict([decide("x", "warn")])
    many = [decide(str(number), "downweight") for number in range(5)]
    assert mixture.verdict(many).endswith("; 3 others not taken as they are.")
    assert mixture.verdict([decide("x", "register")]) == "1 of 1 component registered."


def test_a_prepared_mixture_elsewhere_is_found_through_the_record(tmp_path):
    built = example_run.write_mixture(tmp_path / "prepared", groupings=40)
    run = tmp_path / "run"
    run.mkdir()
    example_run.write_log(run, built, steps=20)
    assert training_run.read(run).mixture is None
    run_info.describe(["train.py"], {"prepared": str(tmp_path / "prepared")}).save(run)
    assert training_run.read(run).mixture.content_hash == built.content_hash


def test_the_real_components_pooled_are_shown_as_the_reference(tmp_path):
    example_run.write_run(tmp_path, groupings=60)
    path = tmp_path / "mixture.json"
    path.write_text(
        path.read_text()
        .replace('"ratio_to:web"', '"ratio_to:real"')
        .replace('"reference": "web"', '"reference": "real"')
    )
    example_run.make_scorecard("real", 100, groupings=60).save(tmp_path / "scorecards" / "real.json")
    outline = _read(training_run.write(tmp_path))
    assert outline.words.count("real text, the reference") == 2
    assert "of real text" in outline.text


@pytest.mark.parametrize(
    ("fault", "phrases"),
    [
        ("none", ("is fit", "Nothing was found", "9 of 9")),
        ("style", ("is unfit", "sets apart 100 % of the pairs of one subject in two styles", "nothing usable")),
        ("splits all", ("is unfit", "0 of 9", "o grouping was usable")),
    ],
)
def test_an_audit_leads_with_the_verdict_and_shows_what_it_rests_on(tmp_path, fault, phrases):
    result = AuditResult(exam=examine(exam_judge(fault, verifier="yes"), AgentConfig(), tmp_path / "exams"))
    outline = _read(audit.write(tmp_path, result))
    _check_self_contained(outline)
    for words in (*phrases, "Truth and reading", "12 subjects in pairs of neighbours", "No corpus was named", "13.2"):
        assert re.sub(r"\s+", " ", words) in outline.text.replace("\u202f", " ")
