"""A SentencePiece model of 400 pieces."""

from dataclasses import replace

from configs import tokenizer


def get_config():
    base = tokenizer.get_config()
    first = base.components[0]
    text = replace(first, corpus=replace(first.corpus, source="text/web.jsonl.gz"), share=1.0)
    return replace(base, output="tokenizers/small.model", components=(text,), real_to_synthetic=None, vocab_size=400)
