"""`mixtures.show`: what is printed and drawn is what the mixture's files hold."""

from pathlib import Path
import random

import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.builder import build
from diversity_jax.mixtures.config import Component, GatePolicy, MixtureConfig
from diversity_jax.mixtures.replay import describe, inspect_mixture
from diversity_jax.mixtures.show import main
from tests.planted_texts import prose, write_jsonl


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A mixture of long and short documents, 4:1."""
    source, texts = random.Random(0), tmp_path_factory.mktemp("texts")
    parts = []
    for name, kind, words in (("long", "real", 400), ("short", "synthetic", 9)):
        path = write_jsonl(
            texts / f"{name}.jsonl", [{"text": f"{name} {i} " + " ".join(prose(source, words))} for i in range(300)]
        )
        parts.append(Component(name=name, kind=kind, corpus=path, policy=GatePolicy(ungated=True)))
    config = MixtureConfig(
        name="seen", components=tuple(parts), real_to_synthetic=(4, 1), sequence_length=64, processes=1
    )
    return build(config, tmp_path_factory.mktemp("mixture"), lambda _: {}).folder


def test_shares_are_counted_and_decisions_repeated(folder):
    view = inspect_mixture(folder, rows=5000, samples=2)
    assert view.deviation < 1
    assert {name: round(share, 3) for name, share in view.realised.items()} == {"long": 0.8, "short": 0.2}
    assert len(view.replayed) == 2
    text = describe(view)
    assert "80.000 %" in text
    assert "ungated" in text


def test_rows_are_decoded_with_their_documents_apart(folder):
    samples = inspect_mixture(folder, samples=3).samples
    short = [row for row in samples if row.component == "short"]
    assert len(samples) == 6
    assert all("short ".startswith(text[:6]) for row in short for text in row.texts[1:])
    assert sum(len(text.encode()) + 1 for text in short[0].texts) - (not short[0].ends_document) == 65


def test_the_page_needs_nothing_else(folder, tmp_path, capsys):
    main([str(folder), "--output", str(tmp_path / "page"), "--rows", "1000", "--samples", "1"])
    page = Path(capsys.readouterr().out.splitlines()[-1]).read_text()
    assert "seen" in page
    assert 'src="http' not in page


def test_no_mixture_is_one_line(tmp_path):
    with pytest.raises(InputError, match="mixture '': is no path; name the folder of a built mixture"):
        inspect_mixture("")
    with pytest.raises(InputError, match=r"mixture\.json"):
        inspect_mixture(tmp_path)
