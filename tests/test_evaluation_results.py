"""Benchmark files are checked line by line, finished requests are stored, and the statistics are right."""

import json

import numpy as np
import pytest
from scipy import stats

from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.lm_eval_model import RequestStore
from diversity_jax.evaluation.results import compare, figure, is_accuracy, mcnemar, paper_average
from diversity_jax.evaluation.run import summary
from diversity_jax.evaluation.tasks import BY_TASK, PAPER, local_file, read_items, task_names
from diversity_jax.report.pages import evaluation
from diversity_jax.study.analysis import outcomes as study_outcomes
from tests.evaluation_items import ARC, FILES, HELLASWAG, PIQA, WINOGRANDE, write_items
from tests.shared_data import shared_file


def _broken(task, item, **changes):
    changed = {key: value for key, value in (item | changes).items() if value is not ...}
    return BY_TASK[task].check(changed)


def test_items_are_checked_field_by_field():
    assert "lacks the field 'answerKey'" in _broken("arc_easy", ARC[0], answerKey=...)
    assert "answerKey='E' is not among its choices" in _broken("arc_easy", ARC[0], answerKey="E")
    assert "empty answer" in _broken("arc_easy", ARC[0], choices={"text": ["a", " "], "label": ["A", "B"]})
    assert "two lists of one length" in _broken("arc_easy", ARC[0], choices={"text": ["a"], "label": ["A", "B"]})
    assert "expected different texts" in _broken("arc_easy", ARC[0], choices={"text": ["a", "b"], "label": [1, 2]})
    assert "expected different texts" in _broken("arc_easy", ARC[0], choices={"text": ["a", "b"], "label": ["A", "A"]})
    assert "at least two" in _broken("arc_easy", ARC[0], choices={"text": ["a"], "label": ["A"]})
    assert "at least two" in _broken("hellaswag", HELLASWAG[0], endings=["one"])
    assert "label=2" in _broken("piqa", PIQA[0], label=2)
    assert "label is str; expected int" in _broken("piqa", PIQA[0], label="1")
    assert "sol2 is empty" in _broken("piqa", PIQA[0], sol2="")
    assert "has no gap" in _broken("winogrande", WINOGRANDE[0], sentence="No gap.")
    assert "label='4'" in _broken("hellaswag", HELLASWAG[0], label="4")
    for name, items in FILES.items():
        benchmark = next(task for task in PAPER if name.rsplit("_", 1)[0] in task.files)
        assert not any(benchmark.check(item) for item in items), name


def test_a_bad_line_is_named(tmp_path, caplog):
    check = BY_TASK["piqa"].check
    path = tmp_path / "piqa_validation.jsonl"
    for text, message in (
        (json.dumps(PIQA[0]) + "\n{broken\n", r"validation.jsonl:2: is not valid JSON"),
        (json.dumps(PIQA[0]) + "\n[1]\n", r":2: is a list"),
        (json.dumps(PIQA[0] | {"label": 7}) + "\n", r":1: label=7 is not among its choices"),
        ("\n", "holds no item"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_items(path, check)
    path.write_text(3 * (json.dumps(PIQA[0]) + "\n"))
    assert len(read_items(path, check)) == 3
    assert "2 items are the same as an earlier one" in caplog.text
    packed = tmp_path / "cut.jsonl.gz"
    packed.write_bytes((write_items(tmp_path / "data") / "piqa_validation.jsonl.gz").read_bytes()[:40])
    with pytest.raises(InputError, match="ends early"):
        read_items(packed, check)


def test_the_public_files_pass_the_checks():
    folder = shared_file("benchmarks/piqa_validation.jsonl.gz").parent
    for benchmark in PAPER:
        path = local_file(folder, benchmark, benchmark.split)
        assert len(read_items(path, benchmark.check)) >= 100


def test_paper_stands_for_the_eight_and_each_is_named_once():
    assert task_names(["piqa", "paper", "lambada"])[0] == "piqa"
    assert len(task_names(["piqa", "paper", "lambada"])) == 9
    with pytest.raises(InputError, match="tasks is empty"):
        task_names([])


def test_two_files_for_one_split_are_an_error(tmp_path):
    for name in ("piqa_validation.jsonl", "piqa_validation_1000.jsonl"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match="keep one"):
        local_file(tmp_path, BY_TASK["piqa"], "validation")


def test_the_store_keeps_whole_lines_of_the_same_model_only(tmp_path):
    path = tmp_path / "requests.jsonl"
    store = RequestStore(path, {"weights": "a"})
    store.add([("k1", [-1.5, True]), ("k2", [-2.0, False])])
    store.close()
    complete = path.read_bytes()
    path.write_bytes(complete + b'["k3", [-3')  # killed while writing
    again = RequestStore(path, {"weights": "a"})
    assert (again.get("k1", list), again.get("k1", str), again.get("k3", list)) == ([-1.5, True], None, None)
    again.add([("k3", [-3.0, False])])
    again.close()
    assert len(RequestStore(path, {"weights": "a"})) == 3
    assert len(RequestStore(path, {"weights": "b"})) == 0


@pytest.mark.parametrize("line", [[["k2"], "x"], ["k2", {"a": 1}], ["k2", ["x", True]], ["k2", [1.0]], ["k2", None]])
def test_a_store_of_others_is_read_up_to_what_is_no_answer(tmp_path, line):
    RequestStore(tmp_path / "requests.jsonl", {"weights": "a"}).close()
    with open(tmp_path / "requests.jsonl", "a") as file:
        file.write(f'["k1", "text"]\n{json.dumps(line)}\n["k3", "text"]\n')
    store = RequestStore(tmp_path / "requests.jsonl", {"weights": "a"})
    assert (len(store), store.get("k1", str), store.get("k3", str)) == (1, "text", None)
    store.close()


def test_a_full_disk_is_one_line():
    with pytest.raises(InputError, match="the disk is full"):
        RequestStore("/dev/full", {})


@pytest.mark.parametrize(("a", "b"), [(0, 0), (3, 11), (40, 25), (0, 9)])
def test_mcnemar_is_the_exact_binomial_test(a, b):
    assert mcnemar(a, b) == pytest.approx(stats.binomtest(a, a + b).pvalue if a + b else 1.0)


def _outcomes(scores):
    return {str(number): float(score) for number, score in enumerate(scores)}


def test_paired_intervals_cover_the_truth_and_are_tighter_than_unpaired_ones():
    rng = np.random.default_rng(0)
    covered, widths = 0, []
    for trial in range(200):
        hard = rng.random(300)
        ours, theirs = hard < 0.6, hard < 0.55
        flip = rng.random(300) < 0.1
        theirs = np.where(flip, ~theirs, theirs)
        truth = 0.6 - (0.55 * 0.9 + 0.45 * 0.1)
        tasks, average = compare({"t": _outcomes(ours)}, {"t": _outcomes(theirs)}, draws=400, seed=trial)
        covered += tasks["t"].low <= truth <= tasks["t"].high
        widths.append(average.high - average.low)
    assert 0.90 <= covered / 200 <= 0.99
    assert np.mean(widths) < 0.8 * 2 * 1.96 * np.sqrt(2 * 0.25 / 300)


def test_a_comparison_wants_the_same_items():
    with pytest.raises(InputError, match="3 and 4 items, 3 of them the same"):
        compare({"t": _outcomes([1, 0, 1])}, {"t": _outcomes([1, 0, 1, 1])}, draws=100)
    with pytest.raises(InputError, match="no task in common"):
        compare({"a": _outcomes([1])}, {"b": _outcomes([1])}, draws=100)
    tasks, average = compare({"t": _outcomes([1, 0] * 30)}, {"t": _outcomes([1, 0] * 30)}, draws=100)
    assert (tasks["t"].p_value, tasks["t"].difference, average.p_value) == (1.0, 0.0, 1.0)


def test_few_items_that_agree_decide_nothing():
    this, other = {"t": _outcomes([1, 1, 1])}, {"t": _outcomes([0, 0, 0])}
    tasks, average = compare(this, other, draws=2000)
    for compared in (tasks["t"], average):
        assert (compared.difference, compared.p_value) == (1.0, pytest.approx(0.25, abs=0.05))
        assert compared.low < 0.2
    graded, _ = compare({"t": _outcomes([0.9, 0.8, 0.7])}, {"t": _outcomes([0.1, 0.1, 0.1])}, draws=2000)
    assert graded["t"].p_value == pytest.approx(0.25, abs=0.05)
    rng = np.random.default_rng(1)
    decided = [
        compare({"t": _outcomes(rng.random(8))}, {"t": _outcomes(rng.random(8))}, draws=200)[1].p_value < 0.05
        for _ in range(200)
    ]
    assert np.mean(decided) < 0.09
    sure = figure(1.0, 0.0, is_share=True, items=5)
    assert (sure["low"], sure["high"]) == (pytest.approx(stats.binomtest(5, 5).proportion_ci(method="wilson").low), 1.0)
    few = figure(0.3, 0.1, is_share=True, items=20)
    known = stats.binomtest(6, 20).proportion_ci(method="wilson")
    assert (few["low"], few["high"]) == pytest.approx((known.low, known.high))


def test_the_average_weighs_tasks_alike_and_needs_all_eight():
    tasks = {task.task: {"metrics": {task.metric: figure(0.1 * number, 0.02)}} for number, task in enumerate(PAPER)}
    average = paper_average(tasks)
    assert average["value"] == pytest.approx(0.35)
    assert average["stderr"] == pytest.approx(0.02 / np.sqrt(8))
    assert paper_average({name: tasks[name] for name in list(tasks)[:7]}) is None


def test_figures_that_are_no_shares_are_neither_in_percent_nor_accuracies():
    def task(title, metric, value):
        return {"title": title, "metric": metric, "metrics": {metric: figure(value, 0.1)}, "items": 10}

    tasks = {"wikitext": task("wikitext", "word_perplexity", 30.25), "piqa": task("PIQA", "acc", 0.6)}
    results = {"tasks": tasks, "average": None, "held_out": {}}
    assert [line.split()[2] for line in summary(results)] == ["30.25", "60.00"]
    assert study_outcomes(results) == {"accuracy": 0.6, "word_perplexity of wikitext": 30.25}
    only = {"model": {"name": "small"}, "average": None, "tasks": {"wikitext": tasks["wikitext"]}}
    assert evaluation._verdict(only) == "small reaches 30.2 (not in %) on wikitext."
    assert is_accuracy(task("IFEval", "prompt_level_strict_acc", 0.2))
    assert not is_accuracy(task("SQuAD", "f1", 61.5))
