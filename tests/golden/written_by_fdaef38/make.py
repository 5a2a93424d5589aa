"""Makes the samples in this folder. Runs in a checkout of commit fdaef38, whose code writes them:

    PYTHONPATH=CHECKOUT python tests/golden/written_by_fdaef38/make.py --checkout CHECKOUT

Each sample is a folder that a command of that commit wrote, packed in a `.tar.gz` file beside this one. What the
samples hold is summarised in `expected.json`. All text is made by the demo grammar, by functions of the tests, or here.
Pages and figures are left out, since no program reads them.
"""

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import os
from pathlib import Path
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile

HERE = Path(__file__).resolve().parent
SETTINGS = HERE / "settings"
SAMPLES = {
    "inputs": ("text", "benchmarks", "tokenizers", "topics.txt", "personas.txt"),
    "score": ("score_offline", "score_llm", "metrics"),
    "mixture": ("mixture", "nested"),
    "prepared": ("part", "whole/manifest.json", "sentencepiece", "byte_pairs"),
    "run": ("run", "lora", "imported", "exported/run104", "exported/lora4"),
    "synthesis": ("synthesis",),
    "evaluation": ("evaluation",),
    "study": ("study",),
}
LEFT_OUT = ("report.html", "figures")
WORDS = ("oak", "elm", "ash", "fir", "yew", "bay", "fig", "box")
PERSONAS = ("A baker of bread", "A diver in cold seas", "A judge of horses", "A student of law", "A maker of glass")
KILLED_AT_PIECE = 3  # of the pieces whose tokens are written
KILLED_AT_CALL = 21  # of the calls of a synthesis: in its third round


class World:
    """The folder that commands run in. Paths in configurations are relative to it: samples can lie anywhere."""

    def __init__(self, folder: Path, checkout: Path):
        self.folder, self.checkout = folder, checkout
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(checkout),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(checkout / ".jax_cache"),
            "OPENAI_API_KEY": "sk-not-a-key",
        }
        shutil.copytree(SETTINGS, folder / "settings")

    def command(self, module: str, *words: str) -> list[str]:
        """The command line of one of the package's modules."""
        return [sys.executable, "-m", f"diversity_jax.{module}", *words]

    def run(self, module: str, *words: str) -> None:
        """Runs a module and stops the whole script if it fails."""
        print("running", module, *words, flush=True)
        done = subprocess.run(
            self.command(module, *words), cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)

    def python(self, code: str) -> subprocess.CompletedProcess:
        """Runs Python code with the checkout's package."""
        words = [sys.executable, "-c", code]
        return subprocess.run(words, cwd=self.folder, env=self.environment, capture_output=True, text=True)


def config(name: str) -> tuple[str, str]:
    """The words that name one of the configurations in `settings`."""
    return "--config", f"settings/{name}.py"


def write_inputs(world: World) -> None:
    """Text, instruction data, benchmark items, topics and personas."""
    from tests.evaluation_items import BOOLQ, write_items

    world.run("generate", *config("text"))
    draw, lines = random.Random(0), []
    for _ in range(60):
        words = draw.choices(WORDS, k=draw.randint(1, 4))
        record = {"instruction": "Turn.", "input": " ".join(words), "output": " ".join(reversed(words))}
        lines.append(json.dumps(record) + "\n")
    (world.folder / "text" / "talk.jsonl").write_text("".join(lines))
    write_items(world.folder / "benchmarks")
    with gzip.open(world.folder / "text" / "web.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["text"] for line in file]
    texts[30:30] = [BOOLQ[1]["passage"] * 3, texts[0]]  # a benchmark's text, and a copy
    with (world.folder / "text" / "part.jsonl.gz").open("wb") as file, gzip.GzipFile("", "wb", 9, file, mtime=0) as out:
        out.write("".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
    topics = [f"field {n % 3}/area {n % 6}/wide subject {n}\tone, two" for n in range(12)]
    (world.folder / "topics.txt").write_text("\n".join(topics))
    (world.folder / "personas.txt").write_text("\n".join(PERSONAS))


def write_tokens(world: World) -> None:
    """Two small tokenizers, and a component prepared with each."""
    import tokenizers

    world.run("train_tokenizer", *config("tokenizer"))
    with gzip.open(world.folder / "text" / "web.jsonl.gz", "rt") as file:
        texts = [json.loads(line)["text"] for line in file]
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    options = {"special_tokens": ["<|endoftext|>"], "initial_alphabet": alphabet, "show_progress": False}
    made.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(vocab_size=400, **options))
    made.save(str(world.folder / "tokenizers" / "tokenizer.json"))
    for name, file in (("sentencepiece", "small.model"), ("byte_pairs", "tokenizer.json")):
        words = (f"--config.vocabulary=tokenizers/{file}", f"--config.output_dir={name}")
        world.run("mixtures.prepare", *config("tokens"), *words)


def write_scores(world: World) -> None:
    """A score by the offline judge, two corpora scored by a language model on loopback, and baseline metrics."""
    from tests.llm_server import label_oracle, serve

    offline = ("--config.corpus=text/varied.jsonl.gz", "--config.output_dir=score_offline")
    world.run("score", *config("score"), *offline, "--config.metrics=ngram_diversity")
    labels = {}
    for name in ("varied", "dull"):
        with gzip.open(world.folder / "text" / f"{name}.jsonl.gz", "rt") as file:
            labels |= {record["text"]: record["topic"] for record in map(json.loads, file)}
    with serve(label_oracle(labels)) as server:
        world.run(
            "score",
            *config("score"),
            "--config.corpus=text/varied.jsonl.gz,text/dull.jsonl.gz",
            "--config.output_dir=score_llm",
            "--config.judge=openai:gpt-4o-mini",
            f"--config.judge_base_url={server.openai_url}",
        )
    world.run("score", *config("metrics"))


def write_part(world: World) -> dict:
    """A preparation killed between two pieces; returns checksums of the rows of one that was left alone."""
    world.run("mixtures.prepare", *config("part"), "--config.output_dir=whole")
    prepared = world.folder / "whole"
    files = {
        path.relative_to(prepared).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(prepared.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }
    done = world.python(f"""
import os, signal, sys
from diversity_jax.mixtures import pieces
write, seen = pieces.write_json, []
def write_and_die(path, value):
    write(path, value)
    seen.append(path) if str(path).endswith(".rows.json") else None
    if len(seen) == {KILLED_AT_PIECE}:
        os.kill(os.getpid(), signal.SIGKILL)
pieces.write_json = write_and_die
from diversity_jax import config_files
from diversity_jax.mixtures import prepare
prepare.main([], config_files.parse({list(config("part"))!r}, prepare.PrepareConfig))
""")
    if done.returncode != -signal.SIGKILL or not (world.folder / "part" / ".preparing" / "request.json").exists():
        sys.exit(f"the preparation was not killed half-way ({done.returncode}): {done.stderr}")
    return {"files": files}


def answer_of(counter: list[int], kill=None):
    """Answers every stage of a synthesis; every seventh is unusable. Before call `KILLED_AT_CALL`, `kill` is called."""
    from tests.synthesis_answers import subject_of, write

    def answer(stage, samples, payload):
        counter.append(1)
        number = len(counter)
        if kill is not None and number == KILLED_AT_CALL:
            kill()
        properties = payload["schema"]["properties"]
        options = {"persona": "persona" in properties, "topics": "topics_used" in properties}
        made = write(
            subject_of(payload["user"]), random.Random(f"{'later' if kill is None else 'call'} {number}"), **options
        )
        if kill is not None and number % 7 == 0:
            made["question"]["answer"] = "none of these"
        return made

    return answer


def write_synthesis(world: World) -> dict:
    """A synthesis killed in its third round; returns how its completion went."""
    from tests.llm_server import serve

    processes: list[subprocess.Popen] = []
    with serve(answer_of([], lambda: processes[0].kill())) as server:
        words = (*config("generate"), f"--config.generators[0].base_url={server.openai_url}")
        processes.append(subprocess.Popen(world.command("generate", *words), cwd=world.folder, env=world.environment))
        if processes[0].wait() != -signal.SIGKILL:
            sys.exit("the synthesis was not killed")
    shutil.copytree(world.folder / "synthesis", world.folder / "completed")
    with serve(answer_of([])) as server:
        words = (*config("generate"), f"--config.generators[0].base_url={server.openai_url}")
        world.run("generate", *words, "--config.output_dir=completed")
        calls = server.attempts
    committed = sorted(path.name for path in (world.folder / "synthesis" / "rounds").glob("0*.json"))
    return {"committed_rounds": len(committed), "calls_to_complete": calls, "documents": 24}


def write_run(world: World) -> dict:
    """A training run, adapters beside its model, and that model imported; returns checksums of exported weights."""
    world.run("train", *config("train"))
    world.run("train", *config("lora"))
    weights = {}
    for name, step in (("run", 96), ("run", 104), ("lora", 4)):
        world.run("model.convert", "export", name, f"exported/{name}{step}", "--step", str(step))
        weights[f"{name}{step}"] = weights_hash(world.folder / "exported" / f"{name}{step}")
    world.run("model.convert", "import", "exported/run104", "imported")
    prompt = (
        "--config.model.checkpoint=run",
        "--config.prompt=The ",
        "--config.max_tokens=16",
        "--config.temperature=1.0",
    )
    world.run(
        "generate_text", "--config", str(world.checkout / "configs/generate_text.py"), *prompt, "--config.output=said"
    )
    return {"weights": weights, "text": json.loads((world.folder / "said").read_text())["text"]}


def weights_hash(folder: Path) -> str:
    """SHA-256 over the names, shapes and bytes of all tensors in a Hugging Face folder."""
    from safetensors.numpy import load_file

    digest = hashlib.sha256()
    for name, values in sorted(load_file(folder / "model.safetensors").items()):
        digest.update(f"{name} {values.shape} {values.dtype}".encode() + values.tobytes())
    return digest.hexdigest()


def rows_of(world: World) -> dict:
    """Checksums of the first rows that the loader deals from the mixture, and of what it says about each token."""
    done = world.python("""
import hashlib, json
from diversity_jax.mixtures.mixture import Mixture
mixture = Mixture.load("mixture")
found = {"content_hash": mixture.content_hash}
for split in ("train", "validation"):
    batch = mixture.loader(batch_size=100, split=split).batch(0)
    parts = {"tokens": batch.tokens, "component": batch.component, "targets": batch.targets, "starts": batch.starts}
    found[split] = {k: hashlib.sha256(v.astype("<i4").tobytes()).hexdigest() for k, v in parts.items()}
print(json.dumps(found))
""")
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def pack(world: World, name: str, folders: tuple[str, ...]) -> None:
    """Packs folders so that equal contents give equal bytes."""
    target = HERE / f"{name}.tar.gz"
    with (
        target.open("wb") as file,
        gzip.GzipFile("", "wb", 9, file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in sorted(path for folder in folders for path in every_file(world.folder / folder)):
            member = tarfile.TarInfo(path.relative_to(world.folder).as_posix())
            content = path.read_bytes()
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    print(f"{target.name}: {target.stat().st_size:,} bytes")


def every_file(root: Path) -> list[Path]:
    """A file itself, or all files in a folder but pages and figures."""
    if root.is_file():
        return [root]
    files = [path for path in root.rglob("*") if path.is_file()]
    return [path for path in files if not set(path.relative_to(root).parts) & set(LEFT_OUT)]


def pack_configurations(world: World) -> None:
    """The configuration files of that commit, as its users may have copied them."""
    copied = world.folder / "configs_as_written"
    shutil.copytree(world.checkout / "configs", copied, ignore=shutil.ignore_patterns("__pycache__"))
    pack(world, "configs", ("configs_as_written",))


def main() -> None:
    """Makes all samples in a temporary folder and packs them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--checkout", type=Path, required=True, help="a checkout of commit fdaef38")
    parser.add_argument(
        "--folder", type=Path, help="an empty folder to work in, which is kept; default: a temporary one"
    )
    options = parser.parse_args()
    scratch = contextlib.nullcontext(options.folder) if options.folder else tempfile.TemporaryDirectory()
    with scratch as folder:
        world = World(Path(folder).resolve(), options.checkout.resolve())
        write_inputs(world)
        write_scores(world)
        write_tokens(world)
        world.run("mixtures.build", *config("mixture"))
        world.run("mixtures.build", *config("nested"))
        expected = {"part": write_part(world), "synthesis": write_synthesis(world), "run": write_run(world)}
        expected["mixture"] = rows_of(world)
        world.run("evaluate", *config("evaluate"))
        world.run("study", *config("study"))
        for name, folders in SAMPLES.items():
            pack(world, name, folders)
        pack_configurations(world)
    (HERE / "expected.json").write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
