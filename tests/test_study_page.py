"""The page of a study whose runs are made up: what it shows, and that it is drawn from its JSON alone."""

import math

import pytest

from diversity_jax.core import config, run_info
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import read_json, write_json
from diversity_jax.study import analysis, page
from diversity_jax.study.config import StudyConfig

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
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    study = config.parse(["--config", "configs/studies/ratio.py"], StudyConfig)
    found = analysis.analyse(study, list(runs())) | {"densities": {"factors": [], "corpora": []}, "failures": []}
    write_json(folder / "analysis.json", found)
    run_info.describe(["python"], {}).save(folder)
    page.draw(folder)
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
    (first, _) = [one["saturation"]["synthetic tokens (B)"] for one in read_json(folder / "analysis.json")["effects"]]
    assert first["better_than_a_line"]
    assert first["top"]["low"] <= 0.53 <= first["top"]["high"]


def test_an_analysis_of_another_version_is_refused(folder, tmp_path):
    write_json(tmp_path / "analysis.json", read_json(folder / "analysis.json") | {"format_version": 1})
    with pytest.raises(InputError, match="another version of this package wrote it"):
        page.draw(tmp_path)


def test_where_every_recipe_has_the_same_outcome_the_share_explained_is_withheld_with_its_reason(tmp_path):
    study = config.parse(["--config", "configs/studies/ratio.py"], StudyConfig)
    equal = [run | {"outcomes": {"accuracy": 0.5}} for run in runs()]
    results = analysis.analyse(study, equal) | {"densities": {"factors": [], "corpora": []}, "failures": []}
    assert results["relations"][0]["log_line"]["r_squared"] is None
    write_json(tmp_path / "analysis.json", results)
    run_info.describe(["python"], {}).save(tmp_path)
    page.draw(tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert "every recipe has the same outcome" in text
    assert "These runs do not decide" in text
    assert "outcome: the same in all 6 recipes" in text
