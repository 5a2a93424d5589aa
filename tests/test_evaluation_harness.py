"""Our lm-evaluation-harness model gives the scores of the harness's own backend on the exported weights."""

import dataclasses
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diversity_jax import evaluate
from diversity_jax.core import run_info
from diversity_jax.core.artifacts import locked_folder
from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig
from diversity_jax.evaluation import held_out
from diversity_jax.evaluation import run as evaluation_run
from diversity_jax.evaluation.config import EvaluateConfig, HeldOutCorpus, ModelSource
from diversity_jax.evaluation.lm_eval_model import HarnessModel
from diversity_jax.evaluation.load_model import open_model
from diversity_jax.evaluation.tasks import metrics_made_binary
from diversity_jax.model import convert, logits
from diversity_jax.model.convert import write_imported
from diversity_jax.report.pages import evaluation
from diversity_jax.tokenizers.tokenizer import load_tokenizer
from scripts.checks.verify_evaluate import compare, table
from tests.evaluation_items import FILES, PIQA, byte_model, write_items
from tests.small_llama import random_params, small_config

Instance = pytest.importorskip("lm_eval.api.instance").Instance
CachingLM = pytest.importorskip("lm_eval.api.model").CachingLM


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """(model of ours, its export, benchmark files)."""
    folder = tmp_path_factory.mktemp("harness")
    config = small_config(vocab_size=260, num_kv_heads=2, max_length=1024)
    write_imported(config, jax.tree.map(np.asarray, random_params(config)), folder / "ours")
    convert.main(["export", str(folder / "ours"), str(folder / "theirs"), "--tokenizer=bytes"])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "ours" / name).write_bytes((folder / "theirs" / name).read_bytes())
    return folder / "ours", folder / "theirs", write_items(folder / "data")


@pytest.mark.slow
def test_every_likelihood_and_accuracy_equals_the_harness_own_backend(folders):
    """With a window that some contexts exceed; `scripts/checks/verify_evaluate.py` does it for complete files."""
    for package in ("torch", "accelerate"):
        pytest.importorskip(package, reason=f"the harness's own backend needs {package}")
    comparisons = compare(*folders, items=None, max_length=96)
    assert len(comparisons) == 8
    for task, comparison in comparisons.items():
        assert comparison["largest"] < 1e-3, task
        assert comparison["equal"], task
        assert comparison["same at every batch size"], task
    assert (
        0
        < sum(comparison["cut"] for comparison in comparisons.values())
        < sum(comparison["requests"] for comparison in comparisons.values()) - 5
    )
    assert all("identical" in line for line in table(comparisons)[1:-1])


@pytest.mark.slow
def test_rolling_and_generated_answers_equal_the_harness_own_backend(folders):
    for package in ("torch", "accelerate"):
        pytest.importorskip(package, reason=f"the harness's own backend needs {package}")
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(pretrained=str(folders[1]), device="cpu", dtype="float32", batch_size=2, max_length=64)
    ours = HarnessModel(open_model(folders[0], max_length=64), batch_size=4)
    texts = [("é" * 90,), ("short",), ("A longer text about nothing. " * 9,)]
    rolling = [Instance("loglikelihood_rolling", {}, text, number) for number, text in enumerate(texts)]
    for a, b in zip(ours.loglikelihood_rolling(rolling), theirs.loglikelihood_rolling(rolling), strict=True):
        assert a == pytest.approx(b, abs=1e-3)
    settings = {"until": ["\n", "e"], "max_gen_toks": 12, "do_sample": False}
    prompts = [
        "Question: why?\nAnswer:",
        "x",
        "The window is shorter than this prompt, which therefore loses its beginning. " * 2,
    ]
    asked = [Instance("generate_until", {}, (prompt, settings), number) for number, prompt in enumerate(prompts)]
    assert ours.generate_until(asked) == theirs.generate_until(asked)


def test_an_answer_longer_than_the_window_is_scored_in_parts(caplog):
    model = byte_model(max_length=12)
    config, params = model.config, jax.tree.map(jnp.asarray, random_params(model.config))
    score = jax.jit(lambda ids: jax.nn.log_softmax(logits(config, params, ids)[0]))
    context, answer = "a question ", "an answer of many words"
    ids = model.tokenizer.encode(context.rstrip() + " " + answer)
    begin = len(context.rstrip())
    expected = 0.0
    for start in range(begin, len(ids), 6):
        end = min(start + 6, len(ids))
        first = max(end - 13, 0)
        scores = np.asarray(score(jnp.array([ids[first : end - 1]])))
        expected += sum(scores[position - first - 1, ids[position]] for position in range(start, end))
    answers = HarnessModel(model).loglikelihood([Instance("loglikelihood", {}, (context, answer), 0)])
    assert answers[0][0] == pytest.approx(expected, abs=1e-3)
    assert "1 answers are longer than the model's context of 12 tokens" in caplog.text


def run(folders, output, **fields):
    config = EvaluateConfig(
        output_dir=str(output),
        model=ModelSource(checkpoint=str(folders[0])),
        data_dir=str(folders[2]),
        **({"bootstrap_samples": 100} | fields),
    )
    evaluate.main(config)
    return json.loads((output / "results.json").read_text())


def broken(folders, folder, letter):
    """A model whose embedding of one letter is not a number."""
    config = small_config(vocab_size=260, num_kv_heads=2, max_length=1024, tie_embeddings=False)
    params = jax.tree.map(np.array, random_params(config))
    params["embed"][load_tokenizer("bytes").encode_batch([letter])[0]] = np.nan
    write_imported(config, params, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((folders[0] / name).read_bytes())
    return folder


def instances(kind, *arguments):
    requests = [Instance(kind, {"id": number}, each, 0) for number, each in enumerate(arguments)]
    for number, each in enumerate(requests):
        each.task_name, each.doc_id = "made", number
    return requests


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("loglikelihood", [("A fox", " ran"), ("A QUICK fox", " ran"), ("Q" * 90, "!"), ("An ox", " sat")]),
        ("loglikelihood_rolling", [("A fox ran",), ("A QUICK fox ran",), ("Q" * 90,)]),
        ("generate_until", [("A fox", {"max_gen_toks": 3}), ("A QUICK fox", {"max_gen_toks": 3}), ("Q", {})]),
    ],
)
def test_the_first_item_without_a_finite_figure_is_named_and_nothing_is_kept(folders, tmp_path, kind, arguments):
    model = HarnessModel(open_model(broken(folders, tmp_path / "model", "Q")), store=tmp_path / "requests.jsonl")
    with pytest.raises(InputError, match=r"^made, item 1: ") as error:
        getattr(model, kind)(instances(kind, *arguments))
    assert "can be trusted" in str(error.value)
    model.store.close()
    assert "NaN" not in (tmp_path / "requests.jsonl").read_text()


def test_answers_that_the_harness_has_of_another_model_are_refused(folders, tmp_path):
    """The harness's `use_cache` looks answers up by the request alone."""
    model, path = open_model(folders[0]), str(tmp_path / "answers.db")
    for _ in range(2):
        cached = CachingLM(HarnessModel(model), path)
        cached.dbdict["a request"] = "an answer"
        cached.dbdict.close()
    with pytest.raises(InputError, match=r"use_cache .*answers\.db: holds answers of another model"):
        CachingLM(HarnessModel(dataclasses.replace(model, weights_hash="other")), path)


def test_an_evaluation_of_a_model_without_finite_figures_stops(folders, tmp_path):
    model = broken(folders, tmp_path / "model", "e")
    with pytest.raises(InputError, match=r"^piqa, item 0: its log-likelihood is nan"):
        run((model, *folders[1:]), tmp_path / "a", tasks="piqa")
    assert not (tmp_path / "a" / "results.json").exists()
    assert not (tmp_path / "a" / "samples").exists()
    (tmp_path / "far.jsonl").write_text(json.dumps({"text": "Here."}) + "\n")
    far = HeldOutCorpus(name="far", corpus=CorpusConfig(source=str(tmp_path / "far.jsonl")))
    with pytest.raises(InputError, match=r"far, document 0: its log-likelihood is nan"):
        run((model, *folders[1:]), tmp_path / "b", tasks="", out_of_distribution=(far,))
    with pytest.raises(InputError, match=r"^model.max_length=2000: .* is a model for 1024 tokens"):
        open_model(model, max_length=2000)


def test_a_folder_of_another_evaluation_or_command_is_refused(folders, tmp_path):
    first = run(folders, tmp_path / "a", tasks="piqa", limit=2)
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"holds another evaluation \(limit=1 \(was 2\)\); choose another output_dir"):
        run(folders, tmp_path / "a", tasks="piqa", limit=1)
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before
    for told in ("resume", "overwrite"):
        assert run(folders, tmp_path / "a", tasks="piqa", limit=1, **{told: True})["limit"] == 1
        assert run(folders, tmp_path / "a", tasks="piqa", limit=2, resume=True)["tasks"] == first["tasks"]
    run_info.describe(["python -m diversity_jax.train"], {"optimizer": {}}).save(tmp_path / "run")
    with pytest.raises(InputError, match="holds no evaluation, but what"):
        run(folders, tmp_path / "run", tasks="piqa")
    with pytest.raises(InputError, match="memory:// cannot be used here"):
        run(folders, "memory://evaluation")
    with locked_folder(tmp_path / "a"), pytest.raises(InputError, match="is writing to it"):
        run(folders, tmp_path / "a", tasks="piqa", limit=2, resume=True)


def test_the_command_writes_results_a_page_and_goes_on_from_finished_requests(folders, tmp_path, capsys):
    corpus = tmp_path / "far.jsonl"
    corpus.write_text(json.dumps({"text": "Far from everything."}) + "\n")
    far = HeldOutCorpus(name="far", corpus=CorpusConfig(source=str(corpus)))
    first = run(folders, tmp_path / "a", out_of_distribution=(far,))
    assert set(first["tasks"]) == {
        "arc_challenge",
        "arc_easy",
        "boolq",
        "social_iqa",
        "winogrande",
        "piqa",
        "copa",
        "hellaswag",
    }
    assert first["average"]["value"] == pytest.approx(
        np.mean([task["metrics"][task["metric"]]["value"] for task in first["tasks"].values()])
    )
    assert first["data"]["piqa"]["files"]["validation"]["items"] == len(PIQA)
    assert first["held_out"]["far"]["bits_per_byte"] > 0
    assert capsys.readouterr().out.strip().endswith("report.html")
    requests = next((tmp_path / "a" / "requests").glob("*.jsonl"))
    lines = requests.read_text().splitlines()
    requests.write_text("\n".join(lines[: len(lines) // 2]) + "\n")
    assert run(folders, tmp_path / "a")["tasks"] == first["tasks"]
    assert set(requests.read_text().splitlines()) == set(lines)  # to the last bit, whatever was found already
    second = run(
        folders, tmp_path / "b", compare_with=str(tmp_path / "a"), apply_chat_template=True, system_prompt="Answer."
    )
    assert second["comparison"]["average"]["p_value"] <= 1
    page = (tmp_path / "b" / "report.html").read_text()
    assert "Difference with 95 % interval: " in page
    assert "A trial" not in page
    evaluation.write(tmp_path / "b", second | {"limit": 2})
    assert "A trial: only the first 2 items of each task." in (tmp_path / "b" / "report.html").read_text()


def test_bad_benchmark_files_and_models_are_named_before_anything_is_scored(folders, tmp_path):
    bad = write_items(tmp_path / "bad", FILES | {"piqa_validation": [PIQA[0], PIQA[1] | {"label": 4}]})
    with pytest.raises(
        InputError, match=r"piqa_validation.jsonl.gz:2: label=4 is not among its choices \(0, 1\); mend the line"
    ):
        run((folders[0], None, bad), tmp_path / "out")
    bad = write_items(tmp_path / "bad", FILES | {"piqa_validation": [{"goal": "x"}]})
    with pytest.raises(InputError, match=r"gz:1: lacks the field 'sol1'"):
        run((folders[0], None, bad), tmp_path / "out")
    with pytest.raises(InputError, match="no such folder"):
        run((folders[0], None, tmp_path / "nowhere"), tmp_path / "out")
    small = small_config(vocab_size=64)
    write_imported(small, jax.tree.map(np.asarray, random_params(small)), tmp_path / "small")
    with pytest.raises(InputError, match="its vocabulary has 64 ids, the tokenizer 259"):
        open_model(tmp_path / "small", tokenizer="bytes")
    assert not (tmp_path / "out" / "results.json").exists()


def test_more_examples_than_there_are_is_one_line(folders, tmp_path):
    data = write_items(tmp_path / "data", FILES | {"piqa_train": PIQA[:1]})
    with pytest.raises(InputError, match="num_fewshot=9: a task has fewer examples to show; lower it"):
        run((folders[0], None, data), tmp_path / "out", tasks="piqa", num_fewshot=9)


def test_a_text_of_the_name_of_a_component_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(held_out, "component_losses", lambda *_: {"a": ("real", None)})
    text = HeldOutCorpus(name="a", corpus=CorpusConfig(source=str(tmp_path / "a.jsonl")))
    config = EvaluateConfig(tasks="", held_out=True, out_of_distribution=(text,))
    with pytest.raises(InputError, match="'a' is also a component of the run; choose another name"):
        evaluation_run._losses(config, types.SimpleNamespace(scorer=lambda _: None))


def test_graded_metrics_of_answers_with_several_references_are_named():
    """lm_eval counts any score but 0 as 1 there."""
    from datasets import Dataset
    from lm_eval.api.task import ConfigurableTask

    def overlap(references, predictions):
        return 0.25

    def binary(target):
        rows = Dataset.from_list([{"question": "?", "one": "north", "several": ["north", "south"]}])
        metrics = [
            {"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in (overlap, "exact_match")
        ]
        config = {"task": target, "custom_dataset": lambda **_: {"test": rows}, "test_split": "test"}
        config |= {"output_type": "generate_until", "generation_kwargs": {"until": ["\n"]}}
        task = ConfigurableTask(
            config=config | {"doc_to_text": "question", "doc_to_target": target, "metric_list": metrics}
        )
        figures = task.process_results(rows[0], ["south"])
        return metrics_made_binary(task), figures["overlap"]

    assert binary("several") == (["overlap"], 1.0)
    assert binary("one") == ([], 0.25)
