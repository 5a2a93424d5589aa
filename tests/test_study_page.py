"""The page of a study with made-up runs: its content, and that it depends on the JSON alone."""

import math
from types import SimpleNamespace

import pytest

from diversity_jax.core import config, run_info
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json, write_json
from diversity_jax.study import analysis, page
from diversity_jax.study.config import StudyConfig, StudyRun
from diversity_jax.study.graph import StepStore

CORPORA = ((1, 40.0), (5, 90.0), (10, 100.0), (20, 140.0), (34, 160.0), (50, 155.0))


def runs():
    """Accuracy that levels off over synthetic tokens, at two stages and two seeds."""
    for stage, base in (("350M pre-trained", 0.5), ("350M fine-tuned", 0.52)):
        for tokens, clusters in CORPORA:
            for seed in (0, 1):
                noise = 0.001 * math.sin(7 * tokens + 3 * seed)
                yield {
                    "levels": {"synthetic tokens (B)": tokens},
                    "recipe": f"synthetic tokens (B) {tokens}",
                    "seed": seed,
                    "stage": stage,
                    "diversity": {"effective_clusters": clusters, "metrics.self_repetition": 3 - clusters / 100},
                    "controls": {"tokens": 5e10, "length": 700.0 + tokens % 7},
                    "outcomes": {"accuracy": base + 0.03 * (1 - math.exp(-tokens / 8)) + noise},
                }


@pytest.fixture(scope="module")
def analysed():
    study = config.parse(["--config", "configs/studies/ratio.py"], StudyConfig)
    return analysis.analyse(study, list(runs())) | {"densities": {"factors": [], "corpora": []}, "failures": []}


@pytest.fixture(scope="module")
def folder(analysed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    write_json(folder / "analysis.json", analysed)
    run_info.describe(["python"], {}).save(folder)
    analysis.draw(folder)
    return folder


def test_it_is_drawn_from_its_json_alone_and_the_same_each_time(folder):
    before = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} | {
        "page": (folder / "report.html").read_bytes()
    }
    (folder / "report.html").unlink()
    page.main([str(folder)])
    after = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} | {
        "page": (folder / "report.html").read_bytes()
    }
    assert before == after


def test_it_shows_every_stage_the_curve_over_amounts_and_the_metrics_by_factor(folder):
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert {
        "against-350m-pre-trained",
        "against-350m-fine-tuned",
        "over-synthetic-tokens-b",
        "figure-metrics-self-repetition",
    } <= names
    assert {path.suffix for path in (folder / "figures").iterdir()} == {".png", ".svg"}
    text = (folder / "report.html").read_text()
    assert "levels off at" in text
    assert "Self-repetition" in text


def test_a_top_that_runs_show_stands_in_the_analysis(folder):
    (first, _) = [
        effect["saturation"]["synthetic tokens (B)"] for effect in read_json(folder / "analysis.json")["effects"]
    ]
    assert first["better_than_a_line"]
    assert first["top"]["low"] <= 0.53 <= first["top"]["high"]


def test_an_analysis_of_another_version_is_refused(analysed, tmp_path):
    write_json(tmp_path / "analysis.json", analysed | {"format_version": 1})
    with pytest.raises(InputError, match="another version of this package wrote it"):
        analysis.draw(tmp_path)


def drawn(folder, found_runs, controls=None):
    """The analysis of made-up runs, and the text of their page."""
    settings = {} if controls is None else {"controls": controls}
    study = config.with_values(config.parse(["--config", "configs/studies/ratio.py"], StudyConfig), settings)
    results = analysis.analyse(study, found_runs) | {"densities": {"factors": [], "corpora": []}, "failures": []}
    write_json(folder / "analysis.json", results)
    run_info.describe(["python"], {}).save(folder)
    analysis.draw(folder)
    return results, (folder / "report.html").read_text()


def test_where_every_recipe_has_the_same_outcome_all_is_withheld_with_its_reason(tmp_path):
    results, text = drawn(tmp_path, [run | {"outcomes": {"accuracy": 0.5}} for run in runs()])
    assert results["relations"][0]["log_line"] == {
        "reason": "outcome: the same in all 6 recipes; nothing can go with it"
    }
    assert "These runs do not decide" in text
    assert "outcome: the same in all 6 recipes" in text
    assert "outcome is the same in all 12 runs, so no factor moves it" in text


def small(n, seeds=2, **changes):
    """The runs of the first n recipes, with outcomes that depend on nothing."""
    outcomes = [0.51, 0.55, 0.50, 0.58, 0.53, 0.60]
    for run in runs():
        tokens = run["levels"]["synthetic tokens (B)"]
        index = [corpus[0] for corpus in CORPORA].index(tokens)
        if index < n and run["seed"] < seeds and run["stage"].endswith("pre-trained"):
            noise = 0.004 * math.sin(9 * index + 5 * run["seed"])
            yield run | {"outcomes": {"accuracy": outcomes[index] + noise}} | changes


PAGES = {
    "one recipe": (1, 2, [], ["Too few runs are finished", "none of synthetic tokens (B) takes two levels"]),
    "two recipes": (
        2,
        2,
        [],
        ["do not decide", "it needs at least 3 recipes", "rank correlation of 2 recipes: an interval needs at least 4"],
    ),
    "three recipes": (3, 2, [], ["rank correlation of 3 recipes", "always 1 or -1; an interval needs at least 5"]),
    "three recipes without controls": (3, 2, (), ["correlation of 3 recipes", "do not decide"]),
    "four recipes": (4, 2, [], ["given length: an interval needs at least 5", "do not decide"]),
    "no run left over": (4, 1, [], ["4 runs leave no degrees of freedom beside the terms"]),
}


@pytest.mark.parametrize("name", PAGES)
def test_pages_of_few_recipes_say_what_they_allow_and_nothing_more(tmp_path, name):
    n, seeds, controls, says = PAGES[name]
    results, text = drawn(tmp_path, list(small(n, seeds)), ("length",) if controls == [] else controls)
    assert all(words in text for words in says), [words for words in says if words not in text]
    assert "share explained" not in text
    assert "100.0 %" not in text
    estimates = [
        relation[key] for relation in results["relations"] if "x" in relation for key in ("spearman", "partial")
    ]
    assert all(
        "reason" in estimate or estimate["low"] is not None or abs(estimate["value"]) == 1 for estimate in estimates
    )


def test_missing_figures_and_controls_are_said(tmp_path):
    records = list(small(6))
    records[0] = records[0] | {"controls": {}}
    records[2] = records[2] | {"diversity": {}}
    records[3] = records[3] | {"diversity": {}}
    _, text = drawn(tmp_path, records, ("length",))
    assert "1 recipe has no effective_clusters" in text
    assert "length is not controlled for accuracy over effective_clusters: some runs have none" in text


def test_a_figure_that_one_corpus_lacks_is_shown_for_the_others(tmp_path):
    records = list(small(6))
    records[0] = records[0] | {"diversity": {"metrics.self_repetition": 2.6}}
    results, _ = drawn(tmp_path, records)
    [shown] = [figure for figure in results["figures"] if figure["figure"] == "effective_clusters"]
    assert len(shown["levels"]["synthetic tokens (B)"]) == 6


def test_tokens_are_those_of_the_run_where_the_study_sets_epochs(tmp_path, monkeypatch):
    store = StepStore(tmp_path)
    settings = {"train": {"steps": 1000, "batch_size": 4, "epochs": 2.0}}
    store.commit("train-1/done.json", {"settings": settings})
    write_json(store.output("train-1") / "run.json", {"settings": {"train": settings["train"] | {"steps": 7}}})
    monkeypatch.setattr(analysis, "_mixture", lambda *_: SimpleNamespace(sequence_length=16, taken=[]))
    run = StudyRun(levels={}, seed=0, keys={"train": "train-1"})
    assert analysis._controls(run, store, "train") == {"tokens": 7.0 * 4 * 16}
