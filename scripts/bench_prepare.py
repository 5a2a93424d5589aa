"""Tokens per CPU second from text to full rows: our preparation against SeqIO's own pipeline, on the same documents in one run.

    python scripts/bench_prepare.py                                  # a SentencePiece model trained on the spot
    python scripts/bench_prepare.py --vocabulary tokenizer.json      # or any other

SeqIO reads one document a line (TextLineDataSource), tokenises in tf.data, appends end-of-text and packs with
DecoderFeatureConverter(pack=True). Ours reads JSONL, writes permuted, checksummed rows and syncs them to disk. CPU seconds are
user and system time of this process with all its threads, the best of alternating repeats.
"""

import argparse
import json
from pathlib import Path
import re
import resource
import tempfile
import time

import numpy as np

from diversity_jax.corpus import CorpusConfig, open_corpus
from diversity_jax.mixtures.component import Component
from diversity_jax.mixtures.preparer import Preparation, prepare
from diversity_jax.mixtures.tokenizer_training import train_tokenizer
from diversity_jax.mixtures.vocabulary import Tokenizer, load_tokenizer, seqio_vocabulary


def documents(kind: str, count: int) -> list[str]:
    """Prose of this machine's packages, as whole documents or as single sentences."""
    found = open_corpus(CorpusConfig(source="installed_docs:prose", max_documents=count))
    texts = [" ".join(document.text.split()) for document in found]
    if kind == "short":
        texts = [sentence for text in texts for sentence in re.split(r"(?<=\.) ", text)]
    return [text for text in texts if text]


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def ours(path: Path, tokenizer: Tokenizer, length: int, folder: Path) -> int:
    settings = Preparation(name="bench", kind="real", sequence_length=length)
    return prepare(open_corpus(str(path)), tokenizer, folder, settings).splits["train"].tokens


def seqio_pipeline(path: Path, tokenizer: Tokenizer, length: int, name: str) -> int:
    from diversity_jax.mixtures.tensorflow import seqio, tf

    feature = seqio.Feature(seqio_vocabulary(tokenizer), add_eos=True, dtype=tf.int32)
    task = seqio.Task(
        name,
        source=seqio.TextLineDataSource({"train": str(path)}),
        preprocessors=[lambda ds: ds.map(lambda text: {"targets": text}), seqio.preprocessors.tokenize, seqio.preprocessors.append_eos],
        output_features={"targets": feature},
    )
    dataset = task.get_dataset({"targets": length}, "train", shuffle=False)
    converter = seqio.DecoderFeatureConverter(pack=True)
    rows = converter(dataset, {"targets": length})
    return sum(int((row["decoder_segment_ids"] > 0).sum()) for row in rows.as_numpy_iterator())


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--vocabulary")
    flags.add_argument("--documents", type=int, default=8000)
    flags.add_argument("--length", type=int, default=512)
    flags.add_argument("--repeats", type=int, default=3)
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        vocabulary = args.vocabulary
        if vocabulary is None:
            prose = Component(name="prose", kind="real", corpus=CorpusConfig(source="installed_docs:prose", max_documents=4000))
            vocabulary = str(train_tokenizer([prose], folder / "bench.model", vocab_size=8192, sample_characters=2_000_000))
        tokenizer = load_tokenizer(vocabulary)
        print(f"{'documents':<10}{'count':>8}{'mean tokens':>13}{'ours tok/CPU-s':>17}{'seqio tok/CPU-s':>17}{'ratio':>8}")
        for kind in ("short", "long"):
            texts = documents(kind, args.documents)
            (folder / f"{kind}.txt").write_text("\n".join(texts))
            (folder / f"{kind}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
            best = {"ours": 0.0, "seqio": 0.0}
            for repeat in range(args.repeats + 1):
                for side in best:
                    before = cpu_seconds()
                    if side == "ours":
                        tokens = ours(folder / f"{kind}.jsonl", tokenizer, args.length, folder / f"{kind}-{repeat}")
                    else:
                        tokens = seqio_pipeline(folder / f"{kind}.txt", tokenizer, args.length, f"{kind}_{repeat}")
                    if repeat:
                        best[side] = max(best[side], tokens / (cpu_seconds() - before))
            mean = np.mean(tokenizer.encode_batch(texts[:2000])[1])
            ratio = best["ours"] / best["seqio"]
            print(f"{kind:<10}{len(texts):>8,}{mean:>13.1f}{best['ours']:>17,.0f}{best['seqio']:>17,.0f}{ratio:>8.2f}")


if __name__ == "__main__":
    started = time.time()
    main()
    print(f"done in {time.time() - started:.0f} s")
