"""Log-likelihood requests per second of our lm-evaluation-harness model class and of the harness's Hugging Face
backend.

Both have the same weights.

    # benchmark files as python -m diversity_jax.evaluate takes them
    python scripts/benchmarks/bench_evaluate.py --data-dir FOLDER --items 100
    # made-up questions with four answers
    python scripts/benchmarks/bench_evaluate.py
    # a model of your own, a Hugging Face folder, in place of a random one of 20 million parameters
    python scripts/benchmarks/bench_evaluate.py --model FOLDER --data-dir FOLDER --items 10

They take turns in one process, so that a busy machine slows both; the first turn of each, which compiles, is not
counted. Ratios are of CPU seconds and of wall-clock time. Needs torch, transformers and accelerate. With `--device
cuda` both run on the GPU.
"""

import argparse
import json
from pathlib import Path
import random
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def main() -> None:
    options = _options()
    import jax
    import torch

    with tempfile.TemporaryDirectory() as folder:
        requests = _requests(options)
        if options.model is None:
            _write_model(Path(folder), requests, options)
        ours, theirs = _backends(str(options.model or folder), options)
        agree = _compare(ours, theirs, requests)
        seconds, cpu = ({"ours": [], "theirs": []} for _ in range(2))
        for turn in range(options.turns + 1):
            for name, backend in (("ours", ours), ("theirs", theirs)):
                began, began_cpu = time.perf_counter(), time.process_time()
                _run(backend, requests)
                if turn:
                    seconds[name].append(time.perf_counter() - began)
                    cpu[name].append(time.process_time() - began_cpu)
    rates = {name: len(requests) / min(turns) for name, turns in seconds.items()}
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}, torch {torch.__version__} on {options.device}")
    print(f"{len(requests):,} requests, batch size {options.batch_size}; largest difference {agree:.1e} nats")
    print(f"ours {rates['ours']:.1f} requests/s, harness's hf backend {rates['theirs']:.1f} requests/s (fastest turns)")
    for what, taken in (("the clock", seconds), ("CPU seconds", cpu)):
        ratios = [b / a for a, b in zip(taken["ours"], taken["theirs"], strict=True)]
        spread = f"median of {len(ratios)} turns, {min(ratios):.2f} to {max(ratios):.2f}"
        print(f"ratio by {what} {statistics.median(ratios):.2f} ({spread})")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", type=Path, help="local benchmark files; default: made-up items")
    parser.add_argument("--model", type=Path, help="a Hugging Face folder; default: random weights")
    parser.add_argument("--items", type=int, default=40, help="of each task")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu", help="torch's device; JAX takes its own default")
    parser.add_argument("--vocab-size", type=int, default=32000)
    return parser.parse_args()


def _requests(options: argparse.Namespace) -> list[tuple[str, str]]:
    """(context, continuation) of every request."""
    if options.data_dir is None:
        draw = random.Random(0)
        words = ["".join(draw.choice("aeioulnrstdm") for _ in range(draw.randint(2, 8))) for _ in range(2000)]
        text = lambda low, high: " ".join(draw.choices(words, k=draw.randint(low, high)))  # noqa: E731
        contexts = [f"Question: {text(20, 60)}?\nAnswer:" for _ in range(8 * options.items)]
        return [(context, " " + text(2, 12)) for context in contexts for _ in range(4)]
    from diversity_jax.evaluation import tasks as benchmarks

    tasks, _ = benchmarks.build(benchmarks.task_names(["paper"]), options.data_dir)
    pairs = []
    for task in tasks:
        task.set_config(key="num_fewshot", value=0)
        task.build_all_requests(limit=options.items, rank=0, world_size=1)
        pairs += [instance.args for instance in task.instances]
    return pairs


def _write_model(folder: Path, requests: list[tuple[str, str]], options: argparse.Namespace) -> None:
    """A Llama of 20 million random parameters (at the default vocabulary) and a tokenizer trained on the requests."""
    import jax
    import tokenizers

    from diversity_jax.model import LlamaConfig, init_params
    from diversity_jax.model.checkpoint_io.hugging_face import export_hugging_face

    config = LlamaConfig(
        vocab_size=options.vocab_size,
        hidden_size=320,
        intermediate_size=864,
        num_layers=8,
        num_heads=5,
        max_length=2048,
        initializer_range=0.05,
        compute_dtype="float32",
    )
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=8192, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((context + continuation for context, continuation in requests), trainer)
    export_hugging_face(config, init_params(config, jax.random.key(0)), folder, token_ids={"eos_token_id": 0})
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    print(f"model: {config.parameter_count:,} parameters")


def _backends(folder: str, options: argparse.Namespace):
    from lm_eval.models.huggingface import HFLM

    from diversity_jax.evaluation.lm_eval_model import HarnessModel
    from diversity_jax.evaluation.load_model import open_model

    theirs = HFLM(pretrained=folder, device=options.device, dtype="float32", batch_size=options.batch_size)
    return HarnessModel(open_model(folder), batch_size=options.batch_size), theirs


def _run(backend, requests):
    from lm_eval.api.instance import Instance

    if hasattr(backend, "store"):
        backend.store = type(backend.store)(None, {})  # nothing is known from the turn before
    instances = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(requests)]
    return backend.loglikelihood(instances, disable_tqdm=True)


def _compare(ours, theirs, requests) -> float:
    return max(abs(a[0] - b[0]) for a, b in zip(_run(ours, requests), _run(theirs, requests), strict=True))


if __name__ == "__main__":
    main()
