"""lm-evaluation-harness's API clients score our server as our own backend scores the model, item by item."""

import pytest

from diversity_jax.evaluation import tasks
from diversity_jax.evaluation.lm_eval_model import HarnessModel
from tests.evaluation_items import byte_model, write_items
from tests.running_server import running

pytest.importorskip("lm_eval")
pytest.importorskip("tenacity", reason="lm_eval's clients need its extra api")
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from lm_eval.tasks import TaskManager


@pytest.fixture(scope="module")
def served():
    """(model, address)."""
    model = byte_model(max_length=512)
    with running(model) as (port, _):
        yield model, f"http://127.0.0.1:{port}/v1"


def test_local_completions_give_the_likelihoods_and_accuracies_of_our_backend(served, tmp_path):
    model, address = served
    write_items(tmp_path)

    def samples(lm):
        built, _ = tasks.build(["arc_challenge", "boolq", "piqa", "winogrande"], tmp_path, num_fewshot=0)
        manager = TaskManager(include_defaults=False)
        return simple_evaluate(model=lm, tasks=built, task_manager=manager, bootstrap_iters=0)["samples"]

    ours = samples(HarnessModel(model))
    # The server tells its tokenizer too, so that the client needs none.
    theirs = samples(LocalCompletionsAPI(base_url=f"{address}/completions", model="tiny", max_length=512, batch_size=4))
    assert sum(len(items) for items in ours.values()) == 9
    for name, items in ours.items():
        for expected, actual in zip(items, theirs[name], strict=True):
            assert [greedy for _, greedy in actual["filtered_resps"]] == [g for _, g in expected["filtered_resps"]]
            nats = [nats for nats, _ in expected["filtered_resps"]]
            assert [nats for nats, _ in actual["filtered_resps"]] == pytest.approx(nats, abs=1e-4)
            assert [actual[metric] for metric in actual["metrics"]] == [
                expected[metric] for metric in expected["metrics"]
            ]
    accuracy = [item["acc"] for items in ours.values() for item in items]
    assert 0 < sum(accuracy) < len(accuracy)


def test_local_chat_completions_give_the_answers_of_our_backend(served):
    model, address = served
    client = LocalChatCompletion(base_url=f"{address}/chat/completions", model="tiny")
    settings = {"until": ["\n", "q"], "max_gen_toks": 12, "do_sample": False}
    chats = [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}] for text in ("Hi", "Why?")]
    asked, plain = (
        [Instance("generate_until", {}, (show(chat), dict(settings)), number) for number, chat in enumerate(chats)]
        for show in (client.apply_chat_template, model.chat)
    )
    assert client.generate_until(asked) == HarnessModel(model, slots=8).generate_until(plain)
