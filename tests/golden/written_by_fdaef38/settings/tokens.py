"""One component as tokens of a trained tokenizer; the tokenizer and the output folder come from the command line."""

from dataclasses import replace

from configs import prepare


def get_config():
    base = prepare.get_config()
    corpus = replace(base.corpus, source="text/lean.jsonl.gz")
    hygiene = replace(base.preparation.hygiene, near_duplicates=None)
    preparation = replace(base.preparation, name="lean", sequence_length=32, validation_share=0.1, hygiene=hygiene)
    return replace(base, corpus=corpus, preparation=preparation, processes=1)
