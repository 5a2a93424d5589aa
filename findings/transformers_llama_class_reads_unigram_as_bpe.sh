#!/usr/bin/env bash
# transformers 5.24.0 and 4.57.6, tokenizers 0.23.3 and 0.22.2, sentencepiece 0.2.3, Python 3.11: a folder with a
# SentencePiece model of type unigram as tokenizer.model, and LlamaTokenizer as its class.
#
# Expected: the ids of the model, as `SentencePieceProcessor.encode` gives them, or an error that the class reads BPE alone.
# Seen: transformers 5.24 takes the pieces for a BPE, for which it makes up merges: every one of 79 texts has other ids
# ("value" is "val" "u" "e"), nothing is said, and decoding gives the text back, so that no round trip shows it. 4.57.6
# builds a unigram model; 3 texts differ, where runs of spaces may be cut in ways that are as likely as each other. Of a
# model of type bpe both give all ids as they are.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
cat > "$folder/compare.py" <<'PY'
import io
import json
from pathlib import Path
from pydoc_data.topics import topics
import sys

import sentencepiece
import transformers
from transformers import AutoTokenizer

transformers.logging.set_verbosity_error()
texts, root = list(topics.values()), Path(sys.argv[1])
counts = {}
for kind in ("bpe", "unigram"):
    out, place = io.BytesIO(), root / kind
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(part for text in texts for part in text.split("\n\n")),
        model_writer=out,
        vocab_size=2000,
        model_type=kind,
        byte_fallback=True,
        allow_whitespace_only_pieces=True,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        max_sentence_length=100_000,
        minloglevel=2,
    )
    place.mkdir(exist_ok=True)
    (place / "tokenizer.model").write_bytes(out.getvalue())
    (place / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", "legacy": False}))
    (place / "config.json").write_text(json.dumps({"model_type": "llama"}))
    own = sentencepiece.SentencePieceProcessor(model_proto=out.getvalue())
    theirs = AutoTokenizer.from_pretrained(place)
    ids = theirs(texts, add_special_tokens=False)["input_ids"]
    counts[kind] = sum(own.encode(text) != found for text, found in zip(texts, ids, strict=True))
    words = theirs.tokenize("The value")
    print(f"transformers {transformers.__version__}, {kind}: {counts[kind]} of {len(texts)} texts differ;", end=" ")
    print("'The value' is", words, "and to SentencePiece", own.encode("The value", out_type=str))
assert counts["bpe"] == 0
assert counts["unigram"] == len(texts) if transformers.__version__.startswith("5.") else 0 < counts["unigram"] < 10
PY
for version in 5.24.0 4.57.6; do
  python3 -m venv "$folder/$version"
  "$folder/$version/bin/pip" install --quiet --disable-pip-version-check \
    "transformers==$version" sentencepiece==0.2.3 protobuf==7.36.2
  "$folder/$version/bin/python" "$folder/compare.py" "$folder" 2>/dev/null
done
