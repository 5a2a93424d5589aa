"""The Python interface: `import diversity_jax as dj`."""

import asyncio
import doctest
from fractions import Fraction
import importlib.util
import json
import pickle
import subprocess
import sys

import jax
import numpy as np
import pandas
import pyarrow as pa
import pytest

import diversity_jax as dj
from diversity_jax.api import mixtures, scoring
from diversity_jax.cluster_agent import AgentConfig, Scorecard
from diversity_jax.core.errors import InputError
from diversity_jax.evaluation.generate import Generator
from diversity_jax.evaluation.sampling import Sampling
from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face
from diversity_jax.scoring.config import ScoreConfig, named_corpora
from diversity_jax.scoring.run import run_score
from tests.mixture_folders import build_mixture
from tests.small_llama import random_params, small_config

SUBJECTS = ("the ferry left the harbour", "a court fined the bank", "bees carry pollen", "the baker folds dough")
TEXTS = [f"On day {day} {subject}" for day in range(10) for subject in SUBJECTS]
FEW = {"groupings": 40, "samples_per_grouping": 10, "criteria_sets": 2}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build_mixture(tmp_path_factory.mktemp("mixture"), {"web": Fraction(3, 4), "made": Fraction(1, 4)})


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    config = small_config(vocab_size=384, max_length=128)
    folder = tmp_path_factory.mktemp("models") / "small"
    export_hugging_face(config, random_params(config), folder)
    return folder


@pytest.fixture(scope="module")
def model(model_folder):
    return dj.load_model(model_folder, tokenizer="bytes", slots=4)


@pytest.mark.parametrize("module", [scoring, mixtures], ids=lambda module: module.__name__)
def test_the_examples_of_the_documentation_run(module, built, model_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = tmp_path / "web.jsonl"
    texts.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    given = {"mixture_folder": built, "model_folder": model_folder, "text_file": str(texts)}
    given |= {"new_folder": tmp_path / "small"}
    examples = doctest.DocTestFinder(recurse=True).find(module, extraglobs=given)
    runner = doctest.DocTestRunner()
    for example in examples:
        runner.run(example)
    assert runner.tries > 4
    assert runner.failures == 0
    assert {path.name for path in tmp_path.iterdir()} <= {"web.jsonl", "small"}


def test_the_interface_loads_nothing_before_it_is_used():
    code = (
        "import sys; before = set(sys.modules); import diversity_jax as dj; names = dir(dj)\n"
        "print(len([name for name in set(sys.modules) - before if name.startswith('diversity_jax')]))\n"
        "print(all(name in names for name in dj.__all__), 'numpy' in sys.modules, hasattr(dj, 'scores'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    count, *facts = done.stdout.split()
    assert int(count) <= 3
    assert facts == ["True", "False", "False"]


def test_the_function_and_the_module_of_its_name_are_one():
    import diversity_jax.score as command

    assert dj.score is command
    assert callable(command)
    assert callable(command.main)


def test_a_score_is_that_of_the_command(tmp_path, capsys):
    path = tmp_path / "texts.jsonl"
    path.write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    scorecard = dj.score(path, agent=FEW)
    config = ScoreConfig(corpus=str(path), output_dir=str(tmp_path / "out"))
    from diversity_jax.core.config import with_fields

    dj.score.main(with_fields(config, {"agent": FEW}))
    assert capsys.readouterr().out.strip() == str(tmp_path / "out" / "report.html")
    assert scorecard.content_hash == Scorecard.load(tmp_path / "out" / "scorecard.json").content_hash
    again = dj.score(path, agent=FEW, output_dir=tmp_path / "out", config=config)
    assert again.content_hash == scorecard.content_hash  # taken from the folder


def test_data_of_all_kinds_is_the_same_corpus(tmp_path):
    class Frame:
        columns = ("text", "other")

        def __getitem__(self, name):
            return TEXTS if name == "text" else None

    def texts_of(given):
        return [document.text for document in scoring.open_data(given, "texts", "text")]

    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, part in zip(paths, (TEXTS[:15], TEXTS[15:]), strict=True):
        path.write_text("\n".join(json.dumps({"text": text}) for text in part))
    records = [{"text": text, "number": number} for number, text in enumerate(TEXTS)]
    for given in (TEXTS, tuple(TEXTS), iter(TEXTS), (text for text in TEXTS), records, iter(records), Frame()):
        assert texts_of(given) == TEXTS
    for given in (paths, [str(path) for path in paths], str(tmp_path / "*.jsonl")):
        assert texts_of(given) == TEXTS
    assert texts_of(paths[0]) == texts_of(str(paths[0])) == texts_of([str(paths[0])]) == TEXTS[:15]
    assert texts_of(np.array(TEXTS)) == TEXTS
    frame = pandas.DataFrame({"text": [*TEXTS, None], 0: 1})
    for given in (frame, frame.text, pa.table({"text": [*TEXTS, None]}), [*TEXTS, None], pa.array(TEXTS)):
        assert texts_of(given) == TEXTS  # what is missing is an empty text
    assert [document.text for document in scoring.open_data(frame[["text"]].set_axis([0], axis=1), "a", "0")] == TEXTS
    with pytest.raises(InputError, match="texts: has several columns 'text'"):
        texts_of(frame.set_axis(["text", "text"], axis=1))
    with pytest.raises(InputError, match=r"b.jsonl is named twice; name every file once"):
        texts_of([paths[1], paths[1]])
    drawn = scoring.open_data(TEXTS, "texts", "text").sample(5, seed=1)
    assert [document.text for document in drawn] == [
        document.text for document in scoring.open_data(tmp_path / "*.jsonl", "texts", "text").sample(5, seed=1)
    ]


def test_a_folder_holds_nothing_of_an_earlier_scoring(tmp_path):
    def run(*data, **settings):
        run_score(
            ScoreConfig(output_dir=str(tmp_path), overwrite=True, **settings), scoring.open_all(data, None, "text")
        )
        return {path.name for path in tmp_path.rglob("*.json*")}

    agent = AgentConfig(groupings=12, samples_per_grouping=4, criteria_sets=1)
    run(TEXTS, TEXTS[::2], agent=agent, draws=2, draw_size=15, drift_samples_per_grouping=5, metrics="type_token_ratio")
    checked = {"draws.json", "drift.json", "drift", "metrics_cost.json"}
    for name in "ab":
        assert {path.name for path in (tmp_path / name).iterdir()} == {*checked, "scorecard.json", "groupings.jsonl"}
    assert run(TEXTS, agent=agent) == {"scorecard.json", "groupings.jsonl", "scoring.json", "forecast.json"}
    left = run(TEXTS, judge="none", metrics="type_token_ratio")
    assert left == {"scorecard.json", "metrics_cost.json", "scoring.json", "forecast.json"}


def test_commas_in_braces_and_in_names_of_files_divide_nothing(tmp_path):
    (tmp_path / "a, b.jsonl").touch()
    for given, sources in {
        "{a,b}.jsonl,c.jsonl": ["{a,b}.jsonl", "c.jsonl"],
        f"{tmp_path}/a, b.jsonl": [f"{tmp_path}/a, b.jsonl"],
        "a.jsonl,b.jsonl,": ["a.jsonl", "b.jsonl"],
    }.items():
        assert [corpus.source for corpus in named_corpora(ScoreConfig(corpus=given)).values()] == sources


def test_records_with_nested_texts_stay_as_they_are():
    records = [{"message": {"body": text}} for text in TEXTS]
    corpus = scoring.open_data(records, "texts", "message.body")
    assert [document.text for document in corpus] == [record["message"]["body"] for record in records] == TEXTS


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: dj.score(TEXTS, agnt={}), "agnt: there is no such setting; did you mean 'agent'?"),
        (lambda: dj.score(TEXTS, agent={"groupngs": 3}), "agent.groupngs: .* did you mean 'groupings'?"),
        (lambda: dj.score(TEXTS, agent={"groupings": "3"}), "agent.groupings is text; expected a whole number"),
        (lambda: dj.score(TEXTS, judge="offlne"), "did you mean offline?"),
        (lambda: dj.score(TEXTS, judge="openai:gpt-5-mini"), "OPENAI_API_KEY|output_dir"),
        (lambda: dj.score([1, 2]), r"texts\[0\]: is of type int"),
        (lambda: dj.score([{"body": "a"}]), r"texts\[0\]: has no field 'text'; set text_field to one of: body"),
        (lambda: dj.score([]), "texts: holds no document"),
        (lambda: dj.score("a text of several words alone"), "texts are given as a list"),
        (lambda: dj.score("nowhere.jsonl"), "nowhere.jsonl: no such file"),
        (lambda: dj.score({"text": "a"}), "is of type dict"),
        (lambda: dj.score(None), "is of type NoneType"),
        (lambda: dj.score(TEXTS, config="nowhere.py"), "nowhere.py: no such file"),
        (lambda: dj.compare(TEXTS), "give two or more"),
        (lambda: dj.compare(TEXTS, TEXTS, names=["a", "a"]), "give 2 different names"),
        (
            lambda: dj.compare(TEXTS, TEXTS, names=["../a", "b"], output_dir="runs/x"),
            "names: '../a' is to be a folder's",
        ),
        (lambda: dj.measure(TEXTS, "mtdl"), "metrics=mtdl"),
        (lambda: dj.load_mixture("nowhere"), "nowhere: no such file"),
        (lambda: dj.load_mixture("nowhere", split="test"), "choose one of train, validation"),
        (lambda: dj.load_model("nowhere"), "nowhere"),
        (lambda: dj.load_model("nowhere", stp=3), "did you mean 'step'?"),
        (lambda: dj.build_mixture("nowhere.py"), "nowhere.py: no such file"),
    ],
)
def test_wrong_input_is_one_line(call, words, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(InputError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_scores_in_a_notebook_whose_event_loop_runs():
    async def cell():
        return dj.score(TEXTS, agent=FEW)

    assert asyncio.run(cell()).groupings == 40


def test_what_is_shown_in_a_notebook_is_escaped():
    hostile = "<script>alert(1)</script>"
    scorecard = dj.score(TEXTS, name=hostile, agent=FEW)
    measured = dj.measure(TEXTS, "mtld", name=hostile, baseline={"draws": 2})
    compared = dj.compare(scorecard, scorecard, names=[hostile, "b & c"])
    for shown in (scorecard, measured, compared):
        html = shown._repr_html_()
        assert "<script" not in html
        assert "&lt;script&gt;" in html
        assert repr(shown).count("\n") >= 2
    with pytest.raises(InputError, match="judge: has no effect on scorecards"):
        dj.compare(scorecard, scorecard, judge="offline")
    with pytest.raises(InputError, match="alpha='x': must be a number"):
        dj.compare(scorecard, scorecard, alpha="x")
    with pytest.raises(InputError, match="give 2 names, one for each scorecard"):
        dj.compare(scorecard, scorecard, names=["a"])


def test_rows_are_those_of_training(built):
    mixture = dj.load_mixture(built)
    batch = mixture.mixture.loader(batch_size=len(mixture)).batch(0)
    rows = list(mixture)
    assert len(rows) == len(mixture) == mixture.mixture.train_rows
    np.testing.assert_array_equal(np.stack([row["tokens"] for row in rows]), batch.tokens)
    np.testing.assert_array_equal([row["component"] for row in rows], batch.component)
    np.testing.assert_array_equal(mixture[-1]["tokens"], batch.tokens[-1])
    assert len(mixture[2:5]) == 3
    with pytest.raises(IndexError):
        mixture[len(mixture)]
    assert mixture.components[int(rows[0]["component"])] in mixture.decode(rows[0])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(mixture))[7]["tokens"], rows[7]["tokens"])
    assert "75.0" in repr(mixture)
    held_out = dj.load_mixture(built, split="validation")
    assert 0 < len(held_out) < len(mixture)


def test_rows_are_the_same_in_other_libraries(built):
    mixture = dj.load_mixture(built)
    rows = mixture[:20]
    wanted = np.stack([row["tokens"] for row in rows])
    dataset = mixture.as_tf_data()
    assert int(dataset.cardinality()) == len(mixture)
    np.testing.assert_array_equal(next(iter(dataset.batch(20)))["tokens"].numpy(), wanted)
    if importlib.util.find_spec("torch"):
        import torch

        loader = torch.utils.data.DataLoader(mixture.as_torch(), batch_size=20, num_workers=1)
        np.testing.assert_array_equal(next(iter(loader))["tokens"].numpy(), wanted)
    else:
        with pytest.raises(InputError, match=r"as_torch needs torch .*; pip install torch"):
            mixture.as_torch()
    if importlib.util.find_spec("grain"):
        np.testing.assert_array_equal(mixture.as_grain().batch(20)[0]["tokens"], wanted)
    else:
        with pytest.raises(InputError, match=r"as_grain needs grain .*; pip install grain"):
            mixture.as_grain()


def test_a_model_generates_as_the_generator_does(model):
    prompts = ["The ", "A longer prompt, "]
    generator = Generator(model.model, slots=4)
    wanted = generator.generate(
        [model.model.tokenizer.encode_prompt(prompt) for prompt in prompts], Sampling(max_tokens=6)
    )
    assert model.generate(prompts, max_tokens=6) == [answer.text for answer in wanted]
    assert model.generate(prompts[0], max_tokens=6) == wanted[0].text
    assert len(model.generate("The ", max_tokens=3, samples=3, temperature=1.0)) == 3
    assert isinstance(model.generate([[{"role": "user", "content": "Hello"}]], max_tokens=2)[0], str)
    with pytest.raises(InputError, match=r"max_token: .*did you mean 'max_tokens'"):
        model.generate("The ", max_token=3)
    with pytest.raises(InputError, match="context holds 128"):
        model.generate("The " * 100)


def test_loglikelihoods_add_up(model):
    together, first, rest = model.loglikelihood([("T", "he cat sat"), ("T", "he cat"), ("The cat", " sat")])
    assert together.nats == pytest.approx(first.nats + rest.nats, rel=1e-5)
    assert together.nats < first.nats < 0
    long = model.loglikelihood("ab" * 200)  # longer than the context
    assert np.isfinite(long.nats)
    with pytest.raises(InputError, match="empty"):
        model.loglikelihood([("The", "")])


def test_objects_say_what_they_are(model, built):
    assert jax.devices()
    assert repr(model).startswith("Model small")
    assert "bytes, 259 ids" in model._repr_html_()
    assert repr(dj.load_mixture(built)).startswith("Mixture made")
