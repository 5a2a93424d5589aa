"""Prices, caps and forecasts."""

import itertools
import json

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.llm import BudgetConfig, PlannedCalls, Price, Request, estimate_tokens, forecast, price_of
from diversity_jax.llm.budget import SHIPPED_PRICES, Amount, is_loopback, largest_use
from tests.shared_data import shared_file


def table(path, **models):
    path.write_text(json.dumps({"models": {"openai": models}}))
    return str(path)


def test_shipped_prices_are_dated_positive_and_dearer_for_output():
    shipped = json.loads(SHIPPED_PRICES.read_text())
    assert shipped["known_on"] >= "2025"
    assert "check" in shipped["note"]
    for family in ("openai", "gemini"):
        for price in shipped["models"][family].values():
            assert 0 < price["input"] < price["output"]


def test_a_price_is_found_by_name_pinned_name_and_successor_package():
    base = price_of("openai", "gpt-4o-mini", None, BudgetConfig())
    assert price_of("openai", "gpt-4o-mini-2024-07-18", None, BudgetConfig()) == base
    assert price_of("gemini", "models/gemini-2.0-flash-001", None, BudgetConfig()) == price_of(
        "google-genai", "gemini-2.0-flash", None, BudgetConfig()
    )
    assert base.cost(1_000_000, 0) == base.input


def test_the_users_prices_win_over_the_shipped_ones(tmp_path):
    prices = table(tmp_path / "p.json", **{"gpt-4o-mini": {"input": 7, "output": 9}, "mine": {"input": 1, "output": 2}})
    config = BudgetConfig(prices=prices)
    assert price_of("openai", "gpt-4o-mini", None, config) == Price(input=7.0, output=9.0)
    assert price_of("openai", "mine", None, config).output == 2.0
    assert price_of("openai", "gpt-4o", None, config) == price_of("openai", "gpt-4o", None, BudgetConfig())


def test_an_unknown_model_asks_for_a_price_unless_told_otherwise_or_on_this_machine():
    with pytest.raises(InputError, match=r"budget\.prices.*unpriced=True"):
        price_of("openai", "mystery", None, BudgetConfig())
    for url in (None, "http://127.0.0.1:1/v1"):
        with pytest.raises(InputError, match=r"cannot be capped.*input_price"):
            price_of("openai", "mystery", url, BudgetConfig(unpriced=True, max_dollars=1.0))
    with pytest.raises(InputError, match=r"cannot be capped.*input_price"):
        price_of("openai", "mystery", "http://127.0.0.1:1/v1", BudgetConfig(max_dollars=1.0))
    for free in (
        price_of("openai", "mystery", None, BudgetConfig(unpriced=True)),
        price_of("openai", "m", "http://127.0.0.1:1/v1", BudgetConfig()),
    ):
        assert free.cost(10**9, 10**9) == 0


INFINITE = {"input_price": float("inf"), "output_price": 1.0}


def test_a_price_given_wins_over_every_table_and_is_whole():
    config = BudgetConfig(input_price=2.0, output_price=8.0, max_dollars=1.0)
    for url in (None, "http://127.0.0.1:1/v1"):
        assert price_of("openai", "gpt-4o", url, config) == Price(input=2.0, output=8.0)
    for half in ({"input_price": 1.0}, {"output_price": 1.0}, {"input_price": -1.0, "output_price": 1.0}, INFINITE):
        with pytest.raises(InputError, match="give both"):
            BudgetConfig(**half)


@pytest.mark.parametrize(
    ("url", "own"),
    [
        ("http://localhost:1/v1", True),
        ("http://[::1]:1", True),
        ("http://127.9.9.9", True),
        ("https://api.openai.com", False),
        (None, False),
        ("http://10.0.0.1", False),
    ],
)
def test_only_this_machine_sends_no_bill(url, own):
    assert is_loopback(url) is own


@pytest.mark.parametrize(
    "content",
    ["[]", "{", '{"models": {"openai": {"m": 3}}}']
    + [
        f'{{"models": {{"openai": {{"m": {{"input": {price}, "output": 1}}}}}}}}'
        for price in ('"x"', "NaN", "-1", "1e999")
    ],
)
def test_a_broken_price_table_is_one_line_that_names_it(content, tmp_path):
    (tmp_path / "p.json").write_text(content)
    with pytest.raises(InputError, match=r"p\.json") as caught:
        price_of("openai", "m", None, BudgetConfig(prices=str(tmp_path / "p.json")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["max_dollars", "max_tokens", "max_calls"])
def test_caps_are_checked_and_compared(name):
    with pytest.raises(InputError, match=f"budget.{name}"):
        BudgetConfig(**{name: -1})
    with pytest.raises(InputError, match=f"budget.{name}"):
        BudgetConfig(**{name: float("nan")})
    config = BudgetConfig(**{name: 10})
    assert Amount(10, 10, 10).passes(config) is None
    assert Amount(10.01, 11, 11).passes(config) == name
    assert Amount(1e9, 10**9, 10**9).passes(BudgetConfig()) is None


@pytest.mark.parametrize(
    "file",
    [
        "corpora_real/web_text",
        "corpora_real/code_java",
        "corpora_real/math_competition",
        "corpora_synthetic/textbooks_gpt35",
    ],
)
def test_estimated_tokens_are_near_a_public_tokenizer_and_the_bound_is_above_it(file):
    import gzip

    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_file(str(shared_file("tokenizers/gpt_neox_tokenizer.json")))
    with gzip.open(shared_file(f"{file}.jsonl.gz"), "rt") as lines:
        texts = [json.loads(line)["text"][:1500] for line in itertools.islice(lines, 60)]
    samples = "\n".join(
        json.dumps({"sample_id": f"k{n:03x}", "text": text}, ensure_ascii=False) for n, text in enumerate(texts)
    )
    actual = len(tokenizer.encode(samples, add_special_tokens=False).ids)
    assert estimate_tokens(samples) == pytest.approx(actual, rel=0.12)
    bound = largest_use(
        Request(stage="s", system="", user=samples, schema=None, max_output_tokens=7), Price(input=1.0, output=2.0)
    )
    assert actual + 7 < bound.tokens
    assert bound.dollars >= (actual * 1.0 + 7 * 2.0) / 1e6
    assert bound.calls == 1


def test_a_forecast_adds_up_and_names_the_cap_it_would_pass():
    planned = [
        PlannedCalls(stage="propose_criteria", calls=10, prompt_tokens=1000, completion_tokens=100),
        PlannedCalls(stage="cluster_samples", calls=90, prompt_tokens=2000, completion_tokens=300),
    ]
    made = forecast(planned, Price(input=1.0, output=10.0), BudgetConfig(max_dollars=0.4))
    assert (made.calls, made.prompt_tokens, made.completion_tokens) == (100, 190_000, 28_000)
    assert made.dollars == pytest.approx(0.19 + 0.28)
    assert made.passes == "max_dollars"
    assert "$0.47" in str(made)
    assert forecast(planned, Price(input=1.0, output=10.0), BudgetConfig()).passes is None
