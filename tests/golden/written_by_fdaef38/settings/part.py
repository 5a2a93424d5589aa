"""One component, prepared in many small pieces, so that it can be stopped between two of them."""

from dataclasses import replace

from configs import prepare


def get_config():
    base = prepare.get_config()
    hygiene = replace(
        base.preparation.hygiene, near_duplicates=0.8, decontaminate=("benchmarks/boolq_validation.jsonl.gz",)
    )
    preparation = replace(
        base.preparation,
        name="part",
        sequence_length=64,
        validation_share=0.1,
        hygiene=hygiene,
        piece_characters=8000,
        shard_bytes=12000,
    )
    corpus = replace(base.corpus, source="text/part.jsonl.gz")
    return replace(base, output_dir="part", corpus=corpus, preparation=preparation, processes=1)
