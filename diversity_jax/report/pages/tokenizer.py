"""The page of a tokenizer: bytes of text a token for each component, examples of tokenised text, long pieces."""

from collections.abc import Mapping, Sequence
import os
from pathlib import Path

import numpy as np

from diversity_jax.core.formats import count, significant
from diversity_jax.core.run_info import Fact
from diversity_jax.report import page
from diversity_jax.report.html import Palette, named
from diversity_jax.report.page import Page
from diversity_jax.tokenizers.base import Tokenizer

_FOOTER = (
    "Written by diversity_jax. Figures are of texts drawn anew from the components, by another seed than training's."
)
_SHOWN_CHARACTERS = 400
_SHOWN_PIECES = 40
_BYTE = "<0x"  # begins SentencePiece's name of a single byte, which stands for part of a character without a piece


def write(model: str | os.PathLike, tokenizer: Tokenizer, texts: Mapping[str, Sequence[str]]) -> Path:
    """Writes `NAME.html` beside `NAME.model`.

    Args:
      texts: documents by component, drawn for the page.

    Returns:
      The path of the page.
    """
    path, palette = Path(model), Palette(list(texts))
    names = [tokenizer.token_text(number) for number in range(tokenizer.size)]
    is_byte = np.array([name.startswith(_BYTE) for name in names])
    rows, shown, totals = [], [], np.zeros(2)
    for name, documents in texts.items():
        ids, _ = tokenizer.encode_batch(documents)
        size = sum(len(text.encode()) for text in documents)
        totals += (size, len(ids))
        if not len(ids):
            continue
        used = len(np.unique(ids))
        share = float(is_byte[ids].mean())
        figures = [significant(size / len(ids)), f"{100 * share:.2f} %", count(used), count(len(documents))]
        rows.append([named(name, palette), *figures])
        shown.append(
            (named(name, palette), [names[i] for i in tokenizer.encode_each([documents[0][:_SHOWN_CHARACTERS]])[0]])
        )
    words = (name for name, byte in zip(names, is_byte, strict=True) if not byte and name.strip("\u2581 "))
    longest = sorted(words, key=len, reverse=True)
    bytes_per_token = totals[0] / max(totals[1], 1)
    composed = Page(
        kind="Tokenizer",
        name=path.stem,
        verdict=f"{count(tokenizer.size)} pieces; a token holds {significant(bytes_per_token)} bytes of text.",
        lede="More bytes a token make shorter rows of the same text, and a larger vocabulary a larger embedding.",
        sections=(
            page.section("tokenizer", "components", "Text a token holds", rows=rows),
            page.section("tokenizer", "cut", "How texts are cut", shown=shown),
            page.section("tokenizer", "pieces", "Longest pieces", pieces=longest[:_SHOWN_PIECES]),
            page.facts([
                Fact(name="File", value=str(path)),
                Fact(name="Hash", value=tokenizer.hash, code=True),
                Fact(name="End of text", value=names[tokenizer.end_of_text_id]),
            ]),
        ),
        footer=_FOOTER,
    )  # fmt: skip
    return page.write(composed, path.parent, name=f"{path.stem}.html", figures=False)
