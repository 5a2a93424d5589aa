"""Our figures equal those of the `diversity` and `vendi-score` packages, stored in a file.

`tests/renew_metrics_golden.py` says how to renew the file, and needs both.
"""

import contextlib
import json
from pathlib import Path
import random

import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.metrics import pairwise
from diversity_jax.metrics.embedding import mean_pairwise_distance, vendi_score
from diversity_jax.metrics.measure import measure
from diversity_jax.metrics.registry import MetricsConfig, chosen_metrics
from tests.renew_metrics_golden import corpora, golden, vectors
from tests.words_by_language import UNSPACED, WORDS, as_text, random_words

GOLDEN = json.loads((Path(__file__).parent / "metrics_golden.json").read_text())
RENEW = "tests/renew_metrics_golden.py renews the file; renew it only when the packages themselves changed"


@pytest.mark.parametrize("name", corpora())
def test_the_diversity_packages_figures_to_the_digits_it_prints(name):
    texts, wanted = corpora()[name], GOLDEN[name]
    figures = {
        "ngram_diversity_score": pairwise.ngram_diversity_score(texts),
        "self_repetition_score": pytest.approx(pairwise.self_repetition_score(texts), abs=1e-12),
        "compression_ratio_gzip": pairwise.compression_ratio(texts, "gzip"),
        "compression_ratio_xz": pairwise.compression_ratio(texts, "xz"),
        "homogenization_score_rougel": pairwise.homogenization_score(texts),
    }
    assert figures == wanted, RENEW


def test_vendi_scores_and_distances_of_vectors():
    wanted, points = GOLDEN["vectors"], vectors()
    assert vendi_score(points) == pytest.approx(wanted["vendi_score_X"], rel=1e-9), RENEW
    assert vendi_score(points) == pytest.approx(wanted["vendi_score_dual_1"], rel=1e-9)
    assert vendi_score(points, 2) == pytest.approx(wanted["vendi_score_dual_2"], rel=1e-9)
    assert vendi_score(points, np.inf) == pytest.approx(wanted["vendi_score_dual_inf"], rel=1e-9)
    assert vendi_score(points, 0.5) == pytest.approx(wanted["vendi_score_K_half"], rel=1e-5)
    assert mean_pairwise_distance(points) == pytest.approx(wanted["remote_clique"] * 40 / 39, abs=2e-3)


def test_with_the_packages_installed_the_file_is_still_what_they_give():
    pytest.importorskip("vendi_score", reason="vendi-score is not installed; the file was made with it")
    pytest.importorskip("rouge_score", reason="rouge-score is not installed; the file was made with it")
    try:
        recomputed = golden()
    except ImportError as error:
        pytest.skip(str(error))
    assert recomputed == GOLDEN


def test_what_the_package_cannot_give_is_one_line():
    with pytest.raises(InputError, match="2 words hold no 4-gram"):
        pairwise.ngram_diversity_score(["two words"])
    with pytest.raises(InputError, match="make no pair"):
        pairwise.homogenization_score(["alone"])
    with pytest.raises(InputError, match="sample pairs"):
        pairwise.homogenization_score(["many"] * 6000)
    with pytest.raises(InputError, match="gzip and xz"):
        pairwise.compression_ratio(["text"], "zstd")


@pytest.mark.parametrize("language", WORDS)
def test_what_the_packages_words_cannot_read_is_left_out(language):
    texts = [as_text(random_words(random.Random(number), language, 60), language) for number in range(8)]
    figures, warnings = pairwise.compatible_figures(texts)
    assert ("ngram_diversity_score" in figures) == ("self_repetition_score" in figures) == (language not in UNSPACED)
    assert ("homogenization_score_rougel" in figures) == (language == "english")
    assert len(figures) + len(warnings) == 5
    report = measure({language: texts}, chosen_metrics("lexical", MetricsConfig()), MetricsConfig(draws=1))[language]
    assert any("without spaces" in warning for warning in report.warnings) == (language in UNSPACED)
    words = report.metrics["context_length_words"].value
    assert 45 <= words <= 80
    assert 20 <= report.metrics["mtld"].value <= 200
    by_pieces = MetricsConfig(draws=1, words="pieces")
    with pytest.raises(InputError, match="words=pieces") if language in UNSPACED else contextlib.nullcontext():
        measure({language: texts}, ["self_repetition"], by_pieces)
