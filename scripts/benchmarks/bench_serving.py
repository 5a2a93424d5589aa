"""CPU seconds and memory of greedy generation by our server, transformers and llama.cpp, with the same float32 weights.

    # a Python with torch, transformers and xllamacpp; its packages are not ours
    python scripts/benchmarks/bench_serving.py HUGGING_FACE_FOLDER --python ENVIRONMENT/bin/python --clients 1 16

Every engine is a process of its own, pinned to one core, so that no CPU time goes to threads that spin. All stay open
and take turns; counted are the user and system CPU seconds of the process during a turn. The first turn, which
compiles, is not counted. The server is asked over HTTP by as many clients as `--clients` says, transformers in one
batch. llama.cpp reads `--gguf`, a file of the same weights, which may be float16. Prints ratios, and the server's
memory at its end beside the weights and the live cache.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor
import contextlib
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import urllib.request

import psutil

ROOT = Path(__file__).resolve().parents[2]
TEXT = "The people who lived by the river built a wall of stone, then a second one and a gate for the market. "

_TRANSFORMERS = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    ids = torch.tensor(asked["prompts"])
    with torch.inference_mode():
        n = asked["tokens"]
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, min_new_tokens=n,
                             do_sample=False, pad_token_id=0)
    print(json.dumps(out[:, ids.shape[1]:].tolist()), flush=True)
"""

_LLAMA_CPP = """
import json, sys, threading, urllib.request, xllamacpp
params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.n_ctx, params.n_parallel = 8192, 16
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(params)
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    found = [None] * len(asked["prompts"])
    def ask(i):
        body = {"prompt": asked["prompts"][i], "n_predict": asked["tokens"], "temperature": 0, "ignore_eos": True,
                "cache_prompt": False, "return_tokens": True}
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(server.listening_address + "/completion", data, kind)
        found[i] = json.load(urllib.request.urlopen(request, timeout=1200))["tokens"]
    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(found))]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    print(json.dumps(found), flush=True)
"""


class PeerProcess:
    """Another library in a process of its own that answers each line of JSON with a line of JSON."""

    def __init__(self, python: str, program: str, argument: str):
        self.process = _start([python, "-c", program, argument], stdin=subprocess.PIPE)
        self._line()

    def _line(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("an engine ended; see its message above")
        return json.loads(line)

    def answer(self, prompts, tokens):
        self.process.stdin.write(json.dumps({"prompts": prompts, "tokens": tokens}) + "\n")
        self.process.stdin.flush()
        return self._line()


class OurServer:
    """Our server, with one client for each prompt."""

    def __init__(self, folder: str):
        flags = [f"--config.model.checkpoint={folder}", "--config.port=0", "--config.name=it"]
        command = [sys.executable, "-m", "diversity_jax.serve", "--config", "configs/serve.py", *flags]
        self.process = _start(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT)
        self.url = self.process.stdout.readline().split()[-1]
        self.resident_at_start = psutil.Process(self.process.pid).memory_info().rss

    def answer(self, prompts, tokens):
        def ask(ids):
            body = {"model": "it", "prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
            data = json.dumps(body).encode()
            request = urllib.request.Request(f"{self.url}/completions", data, {"Content-Type": "application/json"})
            return json.load(urllib.request.urlopen(request, timeout=1200))["choices"][0]["text"]

        with ThreadPoolExecutor(len(prompts)) as pool:
            return list(pool.map(ask, prompts))


def _start(command, **options):
    core = min(os.sched_getaffinity(0))
    pinned = lambda: os.sched_setaffinity(0, {core})  # noqa: E731
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=pinned, **options)


def _cpu_seconds(engine) -> float:
    times = psutil.Process(engine.process.pid).cpu_times()
    return times.user + times.system


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="a Hugging Face folder")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--gguf")
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--prompt-tokens", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--turns", type=int, default=3)
    options = parser.parse_args()
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(f"{options.folder}/tokenizer.json")
    prompts = [
        tokenizer.encode(f"In the year {1000 + n} " + TEXT * (1 + options.prompt_tokens // 20)).ids[
            : options.prompt_tokens
        ]
        for n in range(max(options.clients))
    ]
    engines = {"ours": OurServer(options.folder)}
    engines["transformers"] = PeerProcess(options.python, _TRANSFORMERS, options.folder)
    if options.gguf:
        engines["llama.cpp"] = PeerProcess(options.python, _LLAMA_CPP, options.gguf)
    with contextlib.ExitStack() as stack:
        for engine in engines.values():
            stack.callback(engine.process.terminate)
        for clients in options.clients:
            _compare(engines, prompts[:clients], options, tokenizer)
        _memory(engines["ours"], options)


def _compare(engines, prompts, options, tokenizer) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    ours: list[str] = []
    for turn in range(options.turns + 1):
        for name, engine in engines.items():
            before = _cpu_seconds(engine)
            answers = engine.answer(prompts, options.tokens)
            if turn:
                seconds[name].append(_cpu_seconds(engine) - before)
            elif name != "ours":
                texts = [tokenizer.decode(ids) for ids in answers]
                print(f"{name}: {sum(map(str.__eq__, texts, ours))} of {len(ours)} answers equal ours")
            else:
                ours = answers
    tokens = len(prompts) * options.tokens
    for name, turns in seconds.items():
        ratios = [theirs / own for own, theirs in zip(seconds["ours"], turns, strict=True)]
        print(
            f"{len(prompts)} clients, {options.prompt_tokens} + {options.tokens} tokens: {name} "
            f"{1000 * statistics.median(turns) / tokens:.1f} CPU ms a token; ours is {statistics.median(ratios):.2f}x "
            f"as fast ({min(ratios):.2f} to {max(ratios):.2f})",
            flush=True,
        )


def _memory(server: OurServer, options) -> None:
    config = json.loads((Path(options.folder) / "config.json").read_text())
    weights = sum(file.stat().st_size for file in Path(options.folder).glob("*.safetensors"))
    heads = config["num_key_value_heads"] * config["hidden_size"] // config["num_attention_heads"]
    live = max(options.clients) * (options.prompt_tokens + options.tokens) * 8 * config["num_hidden_layers"] * heads
    used = psutil.Process(server.process.pid).memory_full_info()
    print(
        f"server: {used.rss / 1e6:.0f} MB resident ({server.resident_at_start / 1e6:.0f} MB at the start), "
        f"{used.rss / (weights + live):.2f}x of weights ({weights / 1e6:.0f} MB) and live cache ({live / 1e6:.0f} MB); "
        f"its share, PSS, {used.pss / 1e6:.0f} MB, its own alone, USS, {used.uss / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    main()
