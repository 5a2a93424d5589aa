"""The token forecast of a scoring, before its first call and half-way, against the tokens used."""

from functools import cache
import gzip
import json
import random
from types import SimpleNamespace

import pytest

from diversity_jax.cluster_agent import AgentConfig, LlmJudge, plan_calls, score_corpus
from diversity_jax.cluster_agent.text_cleaning import clean_text
from diversity_jax.cluster_agent.types import JudgeAnswer
from diversity_jax.llm import BudgetConfig, Price, forecast
from diversity_jax.llm.cost_forecast import StageUsage, reforecast
from tests.cluster_agent_answers import follows_instructions
from tests.llm_answers import label_oracle, samples_in, tokens_of
from tests.shared_data import shared_file
from tests.simulated_corpus import ListCorpus

FREE, UNCAPPED = Price(input=0, output=0), BudgetConfig()
WORDS = "river mountain committee bridge town water music number light garden winter story"
GREEK = "το συμβούλιο της πόλης συναντήθηκε ξανά την Τρίτη για να μιλήσει για τη γέφυρα που είναι επικίνδυνη"


class LabelledTexts(ListCorpus):
    """Texts with their labels, as a judge is shown them."""

    def __init__(self, rows):
        self.labels = {clean_text(text, 2000): label for text, label in rows}
        super().__init__(self.labels)


class CountingJudge:
    """A judge that answers at once and counts tokens as it is told."""

    label, prompt_version, identity = "judge", "1", {}

    def __init__(self, answer, count):
        self.answer, self.count, self.used = answer, cache(count), []
        self.requests = LlmJudge(SimpleNamespace(name="openai:x", budget=UNCAPPED, body=None))

    def expect(self, calls):
        pass

    async def ask(self, task):
        request = self.requests.request(task)
        shown = {"system": request.system, "user": request.user, "schema": request.schema}
        text = json.dumps(self.answer(task.stage, samples_in(request.user), shown), ensure_ascii=False)
        prompt = self.count(request.system) + sum(self.count(line + "\n") for line in request.user.splitlines())
        self.used.append((task.stage, prompt, self.count(text)))
        return JudgeAnswer(value=json.loads(text), text=text, prompt_tokens=prompt, completion_tokens=self.used[-1][2])


@cache
def corpus(kind):
    generator = random.Random(0)
    if kind in ("forty words", "Greek"):
        words, length = (WORDS.split(), 40) if kind == "forty words" else (GREEK.split(), 30)
        return LabelledTexts(
            [(f"topic{n % 20} " + " ".join(generator.choices(words, k=length)), n % 20) for n in range(2000)]
        )
    file, label = {
        "queries": ("corpora_real/clinc150_train", "label"),
        "answers": ("corpora_synthetic/llm_answers_600_prompts", "prompt"),
    }[kind]
    with gzip.open(shared_file(f"{file}.jsonl.gz"), "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return LabelledTexts([(row["text"], row[label]) for row in generator.sample(rows, 2000)])


def counter(name):
    if name == "letters":
        return tokens_of
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(shared_file("tokenizers/gpt_neox_tokenizer.json")))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False).ids)


def run(texts, config, judge):
    """Forecast before and in the middle over what was used, and whether that was within the range stated."""
    planned = plan_calls([texts], config)
    before = forecast(planned, FREE, UNCAPPED)
    scorecard = score_corpus(texts, judge, config)
    assert before.calls == pytest.approx(scorecard.calls, rel=0.1)
    used, seen = sum(scorecard.tokens.values()), {}
    for stage, prompt, completion in judge.used[: scorecard.calls // 2]:
        usage = seen.setdefault(stage, StageUsage())
        usage.calls, usage.prompt_tokens, usage.completion_tokens = (
            usage.calls + 1,
            usage.prompt_tokens + prompt,
            usage.completion_tokens + completion,
        )
    middle = reforecast(planned, seen, FREE, UNCAPPED)
    ratios = [(forecast.prompt_tokens + forecast.completion_tokens) / used for forecast in (before, middle)]
    return *ratios, before.least_tokens <= used <= before.most_tokens


SETTINGS = [
    {},
    {"samples_per_grouping": 5},
    {"samples_per_grouping": 20},
    {"verify": False},
    {"reasoning_words": 0},
    {"reasoning_words": 40},
    {"proposals": 20, "criteria_sets": 2, "samples_per_proposal": 12},
    {"criteria_count": 2, "canary_share": 0.0},
]


PLAIN, SMALL, LARGE, UNVERIFIED, WORDLESS, WORDY = SETTINGS[:6]


@pytest.mark.parametrize(
    ("kind", "tokenizer", "settings"),
    [
        *(("answers", "letters", settings) for settings in SETTINGS),
        *(("answers", "neox", settings) for settings in (SMALL, UNVERIFIED)),
        *(("queries", "neox", settings) for settings in (PLAIN, LARGE, WORDLESS)),
        *(("forty words", "neox", settings) for settings in (SMALL, UNVERIFIED, WORDY)),
    ],
    ids=str,
)
def test_a_judge_that_keeps_to_the_instructions_uses_what_was_forecast(kind, tokenizer, settings):
    texts, config = (
        corpus(kind),
        AgentConfig(**{"groupings": 50, "proposals": 3, "in_flight": 1, "verify_share": 1.0} | settings),
    )
    answer = follows_instructions(label_oracle(texts.labels), config.reasoning_words, config.criteria_count)
    before, middle, within = run(texts, config, CountingJudge(answer, counter(tokenizer)))
    assert before == pytest.approx(1, rel=0.12 if kind == "answers" else 0.2)
    assert middle == pytest.approx(1, rel=0.06)
    assert within


@pytest.mark.parametrize(
    ("tokenizer", "settings"),
    [("neox", SMALL), ("letters", PLAIN), ("letters", LARGE), ("letters", UNVERIFIED)],
    ids=str,
)
def test_so_does_a_judge_of_few_words(tokenizer, settings):
    texts, config = corpus("answers"), AgentConfig(**{"groupings": 50, "proposals": 3, "in_flight": 1} | settings)
    before, middle, within = run(texts, config, CountingJudge(label_oracle(texts.labels), counter(tokenizer)))
    assert before == pytest.approx(1, rel=0.12)
    assert middle == pytest.approx(1, rel=0.06)
    assert within


@pytest.mark.parametrize("kind", ["queries", "forty words", "Greek"])
@pytest.mark.parametrize("terse", [True, False])
@pytest.mark.parametrize("tokenizer", ["neox", "letters"])
def test_where_answers_are_most_of_it_the_range_holds_and_the_run_finds_out(tokenizer, terse, kind):
    texts, config = corpus(kind), AgentConfig(groupings=50, proposals=3)
    oracle = label_oracle(texts.labels)
    answer = oracle if terse else follows_instructions(oracle, config.reasoning_words)
    before, middle, within = run(texts, config, CountingJudge(answer, counter(tokenizer)))
    assert 0.65 < before < 1.6
    assert middle == pytest.approx(1, rel=0.06)
    assert within


def test_a_model_that_thinks_first_is_found_out_while_it_runs():
    texts, config = corpus("forty words"), AgentConfig(groupings=50, proposals=3)
    judge = CountingJudge(label_oracle(texts.labels), lambda text: tokens_of(text) + 1500 * text.startswith('{"'))
    _, middle, _ = run(texts, config, judge)
    assert middle == pytest.approx(1, rel=0.1)


def test_asking_for_less_costs_less():
    def completion_tokens(words):
        planned = plan_calls([corpus("forty words")], AgentConfig(groupings=100, reasoning_words=words))
        return sum(plan.calls * plan.completion_tokens for plan in planned)

    assert completion_tokens(0) < completion_tokens(5) / 1.5
    assert completion_tokens(5) < completion_tokens(40) / 1.1
