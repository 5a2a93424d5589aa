"""Metrics merged over Beam workers equal those of one machine up to the order of sums."""

import json

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.metrics import MetricsConfig, beam, lexical
from diversity_jax.metrics.ngrams import Ngrams
from diversity_jax.metrics.text import split_words


@pytest.fixture
def texts():
    draw = np.random.default_rng(2)
    made = [" ".join(f"w{int(i)}" for i in draw.zipf(1.6, draw.integers(0, 40)) % 60) for _ in range(150)]
    return [*made, "", "one", "\u6570\u636e\u96c6 \u6570\u636e", made[0], made[0], "a b c d \ud800"]


def expected(texts):
    words, folded = split_words(texts), split_words(texts, "folded")
    ngrams = Ngrams(words)
    shares = [lexical.ngram_diversity(ngrams, n) for n in range(1, 5)]
    return {
        "context_length_words": lexical.context_length(words),
        "self_repetition": lexical.self_repetition(ngrams),
        **{f"ngram_diversity_{n}": share for n, share in enumerate(shares, 1)},
        "ngram_diversity": sum(shares),
        "type_token_ratio": lexical.type_token_ratio(folded),
        "mtld": lexical.mtld(folded),
    }


def test_blocks_in_any_cut_give_the_figures_of_one_machine(texts, monkeypatch):
    """The same functions without Beam between them, on a lone surrogate too."""
    for size in (7, 1000):
        monkeypatch.setattr(beam, "_BLOCK_DOCUMENTS", size)
        blocks = [(str(start), texts[start : start + size]) for start in range(0, len(texts), size)]
        sums, distinct, repeats, others = [], {}, {}, {}
        for block in blocks:
            for tag, value in beam.count_block(block, "written"):
                if tag == "sums":
                    sums.append(value)
                else:
                    ({"distinct": distinct, "repeats": repeats}[tag]).setdefault(value[0], []).append(value[1])
        for parts in repeats.values():
            for name, counts in beam.count_others(parts):
                others.setdefault(name, []).append(counts)
        logs = [{"log": float(np.log1p(sum(counts)).sum())} for counts in others.values()]
        merged = {
            "sums": beam._summed(sums),
            "distinct": beam._summed(beam.count_distinct(key, parts) for key, parts in distinct.items()),
            "repeats": beam._summed(logs),
        }
        assert beam._values(merged) == pytest.approx(expected(texts), rel=1e-12)


@pytest.mark.slow
def test_a_pipeline_gives_the_same_report(texts, tmp_path):
    pytest.importorskip("apache_beam")
    texts = [text for text in texts[:-1] if text]
    for number in range(2):
        lines = (json.dumps({"text": text}) + "\n" for text in texts[number::2])
        (tmp_path / f"{number}.jsonl").write_text("".join(lines))
    source = CorpusConfig(source=str(tmp_path / "*.jsonl"))
    config = MetricsConfig(runner="DirectRunner")
    asked = ("self_repetition", "ngram_diversity", "mtld", "type_token_ratio", "compression_ratio_gzip")
    report = beam.measure_all(lambda: open_corpus(source), "made", asked, config, str(tmp_path))
    wanted = expected(texts)
    assert {name: figure.value for name, figure in report.metrics.items()} == pytest.approx(
        {name: wanted[name] for name in asked[:-1]}
    )
    assert report.corpus["documents"] == len(texts)
    assert "compression_ratio_gzip" in report.warnings[1]
    assert not list(tmp_path.glob(".whole-*"))
    (tmp_path / "0.jsonl").write_text('{"text": 7}\n')
    with pytest.raises(InputError, match=r"0.jsonl:1"):
        beam.measure_all(lambda: open_corpus(source), "made", asked, config, str(tmp_path))


def test_metrics_that_do_not_merge_and_unknown_runners_are_one_line(tmp_path):
    pytest.importorskip("apache_beam")
    config = MetricsConfig(runner="SlowRunner")
    with pytest.raises(InputError, match="none of rouge_l merges"):
        beam.measure_all(lambda: None, "made", ("rouge_l",), config, str(tmp_path))
    with pytest.raises(InputError, match="SlowRunner"):
        beam.measure_all(lambda: None, "made", ("mtld",), config, str(tmp_path))
