"""The page over all runs of a folder, and labels of axes."""

import json
import re

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import percent, significant
from diversity_jax.report.__main__ import main
from diversity_jax.report.pages import runs
from diversity_jax.report.pages import tokenizer as tokenizer_page
from diversity_jax.report.plotting import distinct_labels
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from tests import example_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two training runs, one with a page; scores of a corpus; an evaluation; a run whose log is broken."""
    root = tmp_path_factory.mktemp("runs")
    mixture = example_run.write_mixture(root / "first" / "mixture", groupings=60)
    example_run.write_log(root / "first", mixture, steps=60)
    (root / "first" / "report.html").write_text("its page")
    (root / "grid" / "<b>second").mkdir(parents=True)
    (root / "grid" / "<b>second" / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": step, "loss": 7.9 + step / 1e5}) + "\n" for step in range(1, 30))
    )
    example_run.make_scorecard("web", 40, groupings=60).save(root / "scored" / "scorecard.json")
    (root / "judged").mkdir()
    share = {"value": 0.51, "low": 0.42, "high": 0.6}
    task = {"title": "PIQA", "metric": "acc", "metrics": {"acc": share}}
    results = {"tasks": {"piqa": task}, "average": None, "held_out": {"web": {"bits_per_byte": 1.25}}, "model": {}}
    (root / "judged" / "results.json").write_text(json.dumps(results))
    (root / "broken").mkdir()
    (root / "broken" / "metrics.jsonl").write_text("not JSON\n")
    return root


def test_every_run_is_on_the_page_with_its_losses_scores_and_evaluations(folder, capsys):
    main([str(folder)])
    assert capsys.readouterr().out.strip() == f"{folder}/index.html"
    text = (folder / "index.html").read_text()
    assert "5 runs: 3 training runs, 2 scorings and 1 evaluation." in text
    assert '<a href="first/report.html">first</a>' in text
    assert "grid/&lt;b&gt;second" in text
    assert "<b>second" not in text
    assert "7.900 to 7.900" in text
    assert re.search(r"broken/metrics\.jsonl:1: [^<]*JSON[^<]*; remove the line, or train again", text)
    assert "Held-out loss, nats a token: first ends at" in text
    assert "offline" in text.split('id="scores"')[1]
    evaluation = text.split('id="evaluations"')[1]
    assert all(part in evaluation for part in ("PIQA", "51.0", "1.2500"))
    assert not (folder / "figures").exists()


def test_the_page_is_brought_up_to_date_by_writing_it_again(folder):
    before = runs.write(folder).read_text()
    assert runs.write(folder).read_text() == before
    (folder / "later").mkdir()
    (folder / "later" / "metrics.jsonl").write_text('{"step": 1, "eval/loss": 2.0}\n')
    assert "The lowest held-out loss at the end is 2.000 nats a token, of later." in runs.write(folder).read_text()


def test_the_page_of_a_tokenizer_says_what_a_token_holds(tmp_path):
    tokenizer = load_tokenizer("bytes")
    path = tokenizer_page.write(tmp_path / "b.model", tokenizer, {"web": ["abc <b>", "caf\u00e9"], "none": []})
    text = path.read_text()
    assert path.name == "b.html"
    assert "a token holds 1 bytes of text" in text
    assert "<b>" not in text.split('id="cut"')[1].split("</section>")[0]


def test_a_folder_without_runs_and_a_wrong_word_are_one_line(tmp_path):
    with pytest.raises(InputError, match="holds no run; name the output_dir of a run, or the folder of several"):
        main([str(tmp_path)])
    with pytest.raises(InputError, match="nowhere: no such folder"):
        main([f"{tmp_path}/nowhere"])
    for words in ([], ["a", "b"], ["a", "--every", "0"], ["a", "--every", "soon"]):
        with pytest.raises(InputError, match=r"it takes FOLDER \[--every SECONDS\]"):
            main(words)


@pytest.mark.parametrize(
    ("values", "form", "labels"),
    [
        ([7.912, 7.913, 7.914], significant, ["7.912", "7.913", "7.914"]),
        ([10_000.5, 10_001, 10_001.5], significant, ["10,000.5", "10,001", "10,001.5"]),
        ([0, 2, 4], significant, ["0", "2", "4"]),
        ([0.1201, 0.1202], percent, ["12.0 %", ""]),
    ],
)
def test_no_label_of_an_axis_stands_twice(values, form, labels):
    written = distinct_labels(values, form)
    assert [label.replace("\N{NO-BREAK SPACE}", " ").replace("\u202f", " ") for label in written] == labels
    assert len(set(np.array(written)[np.array(written) != ""])) == np.count_nonzero(np.array(written) != "")
