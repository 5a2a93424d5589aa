"""A ruler reads each text independently, at one length for all, and reports what it cannot read."""

import numpy as np
import pytest

from diversity_jax.cluster_agent import ruler
from diversity_jax.cluster_agent.exam_corpora import calibration_pairs
from diversity_jax.cluster_agent.ruler import (
    READING_LENGTHS,
    default_ruler,
    embedder_ruler,
    measured_thresholds,
    not_english,
    refusal,
)
from diversity_jax.core.errors import InputError

TEXTS = ["The parliament votes on the new law on Monday.", "Whisk the eggs with sugar.", "", " \n", "Ministers vote."]


def test_vectors_are_of_unit_length_and_depend_on_the_text_alone():
    together = default_ruler().embed(TEXTS)
    alone = np.concatenate([default_ruler().embed([text]) for text in TEXTS])
    assert (together == alone).all()
    assert together.dtype == np.float32
    assert np.allclose(np.linalg.norm(together, axis=1), [1, 1, 0, 0, 1])
    assert together[0] @ together[4] > 0.2 > together[0] @ together[1]


def test_words_cut_one_by_one_have_the_tokens_of_the_whole_text():
    reader = default_ruler().read
    for text in calibration_pairs()["en"].texts[::40]:
        ids = reader._tokenizer.encode(" ".join(text.split()), add_special_tokens=False).ids
        assert np.allclose(reader([text], (10_000,))[0, 0], reader._table[ids].sum(axis=0, dtype=np.float32), atol=1e-3)


def test_only_the_first_words_are_read():
    text = "one two three four five six seven"
    cut = default_ruler().embed([text, "one two  three\nand another end"], words=3)
    assert (cut[0] == cut[1]).all()
    assert (cut[0] == default_ruler().embed(["one two three"])[0]).all()
    at = default_ruler().embed_at([text], (7, 3))
    assert np.allclose(at[0], [default_ruler().embed([text])[0], cut[0]], atol=1e-6)


def test_the_reading_length_is_what_nine_tenths_of_the_texts_reach():
    lengths = [" ".join(["word"] * count) for count in [29] * 1 + [31] * 8 + [500]]
    assert default_ruler().reading_length(lengths) == 30
    assert default_ruler().reading_length([*lengths, "word"]) == 20
    assert default_ruler().reading_length(["word"] * 5) == READING_LENGTHS[0]


def test_the_constants_are_what_the_calibration_pairs_give():
    shipped = default_ruler()
    assert measured_thresholds(shipped.read, "shipped") == pytest.approx(shipped.thresholds, abs=2e-4)
    pairs = calibration_pairs(50)["en"]
    vectors = shipped.embed(pairs.texts, 50)
    same, unrelated = ((vectors[a] * vectors[b]).sum(axis=1) for a, b in (pairs.same.T, pairs.unrelated.T))
    assert (unrelated > shipped.thresholds[50]).mean() == pytest.approx(ruler.ALIKE_BY_CHANCE, rel=0.1)
    assert (same > shipped.thresholds[50]).mean() > 100 * ruler.ALIKE_BY_CHANCE


def test_a_missing_package_is_one_line(monkeypatch):
    monkeypatch.setattr(ruler, "PACKAGE", "no-such-package-here")
    default_ruler.cache_clear()
    with pytest.raises(InputError, match="pip install --no-deps no-such-package-here"):
        default_ruler()


@pytest.mark.parametrize("language", [name for name in calibration_pairs() if name != "en"])
def test_texts_in_other_languages_are_told(language):
    names = {not_english(text) for text in calibration_pairs()[language].texts}
    assert sum(not name for name in map(not_english, calibration_pairs()[language].texts)) <= 1, names


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("for (int i = 0; i < v.size(); ++i) { sum += v[i] * de; } return sum;", ""),
        (r"\begin{lemma} Let $\alpha \in \mathbf{R}$ be as in \ref{eq} and $\sum_i \beta_i = 1$. \end{lemma}", ""),
        ("what does el nino mean in spanish", ""),
        ("Los Angeles de la Vega rode to El Paso, where the band La Mar and the others were waiting for him.", ""),
        ("Der Hund ist auf dem Sofa und schläft.", "German"),
        ("cuál es el saldo de la cuenta que abrí con mi hermano", "Spanish"),
        ("No dia seguinte o barco não saiu do porto, e foi como se os homens o soubessem", "Portuguese"),
        ("31 4.5 17 / 8 = 2,1 % (3)", "numbers and signs"),
        ("Погода сегодня хорошая, но ветер холодный", "Cyrillic"),
        ("今日はとても暑いですね", "Japanese"),
    ],
)
def test_what_a_text_is_written_in(text, name):
    assert not_english(text) == name


def test_texts_whose_vectors_say_nothing_are_refused_and_narrow_ones_are_not():
    draw = np.random.default_rng(0)
    noise = [" ".join(f"{draw.integers(16**12):x}" for _ in range(60)) for _ in range(100)]
    assert "hardly differ" in refusal(default_ruler(), noise)
    texts = calibration_pairs(50)["en"].texts
    template = [
        f"Report number {n}. {texts[0]}. The rest of the report speaks of {text}" for n, text in enumerate(texts)
    ]
    for readable in (texts, template, texts[:10] * 20, ["short text"] * 50):
        assert refusal(default_ruler(), readable) == ""


class Letters:
    """Counts of the letters: an embedder that tells subjects apart hardly at all."""

    label, cost_usd = "letters", 0.0

    def embed(self, texts):
        """[n, 26]."""
        return np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], np.float32)


class Shipped:
    """The shipped vectors, as an embedder of whole texts."""

    label, cost_usd = "shipped", 0.0

    def embed(self, texts):
        """[n, 256]."""
        return default_ruler().embed(texts)


def test_an_embedder_is_calibrated_when_it_is_opened():
    made = embedder_ruler(Shipped())
    assert made.thresholds == pytest.approx(default_ruler().thresholds, abs=2e-3)
    assert made.identity["embedder"] == "shipped"
    assert made.identity != default_ruler().identity
    with pytest.raises(InputError, match="letters: texts of one subject are no more alike"):
        embedder_ruler(Letters())
