#!/usr/bin/env python3
r"""Losses and step times of one small Llama trained on the same rows by our stack and by other trainers, on the CPU.

    python scripts/benchmarks/peers.py prepare WORK                  # tokenizer, rows, models: in our environment
    python scripts/benchmarks/peers.py train WORK hf levanter ...    # each in an environment of its own, by turns
    python scripts/benchmarks/peers.py resume WORK levanter ...      # killed, then again on 8 devices and on 4
    python scripts/benchmarks/peers.py evaluate WORK                 # what the peers exported, read by ours
    python scripts/benchmarks/peers.py table WORK

`--environments` is a path in which {peer} stands for the peer's name; ours is the environment that runs this. The
trainers are scripts/benchmarks/peers/train_NAME.py. They share one core and take turns: after every few steps the
running process is stopped and the next one continues, so that other load on the machine affects all alike.
"""

import argparse
import itertools
import json
import os
from pathlib import Path
import shutil
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PEERS = ("ours", "hf", "levanter", "maxtext", "litgpt", "torchtitan")
BATCH, STEPS, SKIPPED = 2, 50, 5  # the first steps are not timed
DECAYED = {"litgpt": ("all",), "hf": ("matrices", "all")}  # others: as ours
SMALL_STEPS, SMALL_SAVED, SMALL_KILLED = 20, 10, 13


def prepare(work: Path) -> None:
    """Text of the installed packages as rows of 257 tokens, and models with random weights as Hugging Face folders."""
    sys.path.insert(0, str(ROOT))
    import jax

    from diversity_jax.corpus import CorpusConfig
    from diversity_jax.mixtures import builder
    from diversity_jax.mixtures.config import Component, MixtureConfig, TokenizerConfig
    from diversity_jax.model import LLAMA, LlamaConfig, convert, init_params
    from diversity_jax.train_tokenizer import main as train_tokenizer

    prose = CorpusConfig(source="installed_docs:prose", max_documents=5000)
    part = Component(name="prose", kind="real", corpus=prose, share=1)
    vocabulary = str(work / "tokenizer.model")
    train_tokenizer(
        TokenizerConfig(output=vocabulary, components=(part,), vocab_size=8192, sample_characters=2_000_000)
    )
    mixture = MixtureConfig(
        name="peers", components=(part,), vocabulary=vocabulary, sequence_length=256, validation_share=0.02
    )
    builder.build(mixture, work / "mixture", lambda corpora: {})  # no policy asks for a score
    sizes = {"hidden_size": 384, "intermediate_size": 1024, "num_layers": 9, "num_heads": 6, "num_kv_heads": 2}
    # Eight heads of each kind: torchtitan shards weights over devices by whole heads.
    small = {"hidden_size": 64, "intermediate_size": 192, "num_layers": 2, "num_heads": 8, "num_kv_heads": 8}
    for name, config in {
        "17m": LlamaConfig(vocab_size=8192, max_length=512, **sizes),
        "350m_2_layers": LLAMA["llama_350m"](num_layers=2),
        "small": LlamaConfig(vocab_size=8192, max_length=512, **small),
    }.items():
        convert.write_imported(config, init_params(config, jax.random.key(0)), work / "weights" / name)
        folder = str(work / "models" / name)
        convert.main(["export", str(work / "weights" / name), folder, f"--tokenizer={vocabulary}"])


def command(options: argparse.Namespace, peer: str, model: str, output: Path, *flags: object) -> list[str]:
    """The command line of a trainer in its environment."""
    python = sys.executable if peer == "ours" else f"{options.environments.format(peer=peer)}/bin/python"
    file = ROOT / "scripts" / "benchmarks" / "peers" / f"train_{peer}.py"
    paths = ["--model", options.work / "models" / model, "--mixture", options.work / "mixture", "--output", output]
    return [str(word) for word in (python, file, *paths, "--batch", options.batch, *flags)]


def start(words: list[str], log: Path) -> subprocess.Popen:
    """Starts a trainer in a process group of its own; its output goes into a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    environment |= {"PEERS_STARTED": str(time.time()), "OMP_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"}
    environment["TORCHDYNAMO_DISABLE"] = "1"  # compiling for the CPU takes longer than all steps
    with open(log, "a", encoding="utf-8") as file:
        return subprocess.Popen(words, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)


def run(words: list[str], log: Path) -> int:
    """Runs a trainer to its end."""
    return start(words, log).wait()


def train(options: argparse.Namespace) -> None:
    """Runs each peer from the start to the last step, in turns; complete runs are left as they are."""
    waiting = list[tuple[str, list[str], Path]]()
    for peer in options.peers:
        for decayed in DECAYED.get(peer, ("matrices",)):
            output = options.work / "runs" / options.model / f"{peer}-{decayed}"
            if not (output / "result.json").exists():
                shutil.rmtree(output, ignore_errors=True)
                flags = ["--steps", options.steps, "--decayed", decayed]
                waiting.append((output.name, command(options, peer, options.model, output, *flags), output))
    running = list[tuple[str, subprocess.Popen, Path]]()
    while waiting or running:  # turns of seven steps never end at a checkpoint, whose time that would falsify
        name, process, output = running.pop(0) if not waiting else _started(waiting.pop(0))
        os.killpg(process.pid, signal.SIGCONT)
        begun = len(lines(output))
        while process.poll() is None and not 0 < options.turn <= len(lines(output)) - begun:
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGSTOP)
            running.append((name, process, output))
        else:
            print(name, "ended with", process.returncode, flush=True)


def _started(run: tuple[str, list[str], Path]) -> tuple[str, subprocess.Popen, Path]:
    name, words, output = run
    return name, start(words, output.with_suffix(".log")), output


def resume(options: argparse.Namespace) -> None:
    """Runs of the small model: uninterrupted; killed and resumed on as many devices; the same on half of them."""
    options.batch = 8
    for peer in options.peers:
        base = options.work / "resume" / peer
        shutil.rmtree(base, ignore_errors=True)
        flags = ["--steps", SMALL_STEPS, "--checkpoint-every", SMALL_SAVED]
        many = [*flags, "--devices", options.devices]
        run(command(options, peer, "small", base / "whole", *many), base / "whole.log")
        run(command(options, peer, "small", base / "same", *many, "--kill-after", SMALL_KILLED), base / "same.log")
        if options.devices > 1 and (base / "same").exists():
            shutil.copytree(base / "same", base / "fewer")
        run(command(options, peer, "small", base / "same", *many), base / "same.log")
        if options.devices > 1:
            fewer = [*flags, "--devices", options.devices // 2]
            run(command(options, peer, "small", base / "fewer", *fewer), base / "fewer.log")
        print(peer, json.dumps(resumed(base)), flush=True)


def resumed(base: Path) -> dict[str, Any]:
    """For each resumed run, its first step, and the largest difference of its losses from the uninterrupted run."""
    uninterrupted = {line["step"]: line["loss"] for line in lines(base / "whole")}
    result: dict[str, Any] = {"steps": len(uninterrupted)}
    for name in ("same", "fewer") if (base / "fewer").exists() else ("same",):
        attempts = lines(base / name)
        again = [line for line in attempts if attempts and line["pid"] != attempts[0]["pid"]]
        if not again or again[-1]["step"] != SMALL_STEPS:
            result[name] = "did not go on"
            continue
        off = max(abs(line["loss"] - uninterrupted[line["step"]]) for line in again)
        result[name] = {"from": again[0]["step"] - 1, "furthest": off}
    return result


def lines(output: Path) -> list[dict[str, Any]]:
    """The lines of finished steps."""
    path = output / "steps.jsonl"
    text = path.read_text() if path.exists() else ""
    complete = text[: text.rfind("\n") + 1]  # the last one may be being written
    return [line for text in complete.splitlines() if "step" in (line := json.loads(text))]


def evaluate(options: argparse.Namespace) -> None:
    """Held-out loss of every folder that a run exported, by our model; written beside it."""
    sys.path[:0] = [str(ROOT)]
    import jax
    import jax.numpy as jnp

    from diversity_jax.mixtures.mixture import Mixture
    from diversity_jax.model import convert, loss

    loader = Mixture.load(options.work / "mixture").loader(batch_size=16, split="validation")
    tokens = jnp.asarray(loader.batch(0).tokens)
    for folder in sorted((options.work / "runs").glob("*/*/hf")):
        config, params = convert.read_model(folder, compute_dtype="float32", scan_layers=False)
        value = jax.jit(lambda p, config=config: loss(config, p, {"tokens": tokens})[0])(params)
        (folder.parent / "held_out.json").write_text(json.dumps(float(value)))
        print(folder.parent.name, float(value), flush=True)


def table(options: argparse.Namespace) -> None:
    """Markdown of what was measured."""
    for runs in sorted((options.work / "runs").iterdir()):
        done = [path.parent for path in sorted(runs.glob("*/result.json"))]
        anchors = {path.name.split("-")[1]: lines(path) for path in done if path.name.startswith("hf-")}
        print(
            f"\n{runs.name}\n\n| trainer | steps | loss 1 | loss 2 | loss 10 | last loss | furthest from the anchor |"
            " first loss, CPU s | s | a step, CPU s | s | peak GB | checkpoint MB | s | held out |\n|" + "---|" * 15
        )
        for path in done:
            print(_row(path, anchors))


def _row(path: Path, anchors: dict[str, list[dict[str, Any]]]) -> str:
    measured, result = lines(path), json.loads((path / "result.json").read_text())
    anchor = anchors.get(path.name.split("-")[1], [])
    off = max((abs(a["loss"] - b["loss"]) for a, b in zip(measured, anchor, strict=False)), default=float("nan"))
    written = [json.loads(text) for text in (path / "steps.jsonl").read_text().splitlines()]
    start = [line for line in written if "start" in line][-1]
    # Medians: checkpoints, and waiting for the next turn, fall on few of the steps.
    seconds = {
        clock: statistics.median(b[clock] - a[clock] for a, b in itertools.pairwise(measured[SKIPPED - 1 :]))
        for clock in ("cpu", "wall")
    }
    held_out = path / "held_out.json"
    cells = [
        f"{result['framework']}, {result['with']}, decay {path.name.split('-')[1]}",
        str(measured[-1]["step"]),
        *(f"{measured[number]['loss']:.6f}" for number in (0, 1, 9, -1)),
        f"{off:.1e}",
        f"{measured[0]['cpu'] - start.get('cpu', 0):.1f}",
        f"{measured[0]['wall'] - start['start']:.1f}",
        f"{seconds['cpu']:.2f}",
        f"{seconds['wall']:.2f}",
        f"{result['peak_bytes'] / 1e9:.2f}",
        f"{(result['checkpoint_bytes'] or 0) / 1e6:.0f}",
        f"{min(result['save_seconds'], default=float('nan')):.1f}",
        f"{json.loads(held_out.read_text()):.6f}" if held_out.exists() else "",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    """The command line."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("command", choices=("prepare", "train", "resume", "evaluate", "table"))
    flags.add_argument("work", type=Path)
    flags.add_argument("peers", nargs="*", choices=[*PEERS, []], default=[])
    flags.add_argument("--environments", default="environments/{peer}", help="default: %(default)s")
    flags.add_argument("--model", default="17m", choices=("17m", "350m_2_layers", "small"))
    flags.add_argument("--steps", type=int, default=STEPS)
    flags.add_argument("--batch", type=int, default=BATCH)
    flags.add_argument("--turn", type=int, default=7, help="steps, then the next one's; 0: one after the other")
    flags.add_argument("--devices", type=int, default=8, help="simulated ones that `resume` begins with")
    options = flags.parse_args()
    options.work = options.work.absolute()
    options.peers = options.peers or list(PEERS)
    if options.command == "prepare":
        prepare(options.work)
    else:
        {"train": train, "resume": resume, "evaluate": evaluate, "table": table}[options.command](options)


if __name__ == "__main__":
    main()
