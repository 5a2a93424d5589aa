#!/usr/bin/env python
r"""CPU per call, calls per second and wall time of the LLM engine, against the ideal and the plain SDK with a
semaphore.

    python scripts/benchmarks/bench_llm_engine.py --latency_seconds=0.5 --in_flight=256 --calls=10240
    python scripts/benchmarks/bench_llm_engine.py --latency_seconds=0 --in_flight=64 --calls=3000 \
        --judges=openai:m,gemini:m,google-genai:m

The judge is a server process on loopback that gets ten samples of about 60 words per call. The plain SDK has no
response cache and no budget, and retries nothing. The ideal wall time of the engine is calls / in_flight * latency.
That of the whole agent (from its first request for criteria to its scorecard, groupings.jsonl and response cache on
disk) is (3 + calls / in_flight) * latency: proposals, summaries and guidance each wait for the ones before, however
many may be in flight, and each grouping then takes one call, or two where it is verified. The whole command has the
same ideal; its time also includes the start of Python, all imports, the forecast, statistics and the page.
"""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
import json
import os
from pathlib import Path
import platform
import random
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from diversity_jax.cluster_agent import AgentConfig, LlmJudge, score_corpus
from diversity_jax.llm import Engine, EngineConfig, Request
from scripts.child_times import ChildTimes
from tests.llm_server import RemoteServer, serve_process
from tests.simulated_corpus import LabelledDocument

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = {
    "type": "object",
    "properties": {
        "clusters": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {
                    "cluster": {"type": "integer"},
                    "sample_ids": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["cluster", "sample_ids"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["clusters"],
    "additionalProperties": False,
}
SYSTEM = "Group the samples by what they are about. " * 60
TEXT = "the committee of the small town met again on tuesday to talk about the bridge " * 4


def request(number: int) -> Request:
    """A grouping call like those of the cluster agent: 2,500 characters of instructions and ten samples."""
    samples = (json.dumps({"sample_id": f"k{number}x{sample}", "text": TEXT}) for sample in range(10))
    return Request(stage="cluster_samples", system=SYSTEM, user="\n".join(samples), schema=SCHEMA)


async def measure(ask: Callable[[Request], Awaitable], calls: int, in_flight: int) -> tuple[float, float]:
    """Wall seconds and CPU seconds of this process for `calls` calls, after a warm-up that opens the connections."""
    await asyncio.gather(*(ask(request(-number)) for number in range(1, in_flight + 1)))
    started = asyncio.Semaphore(2 * in_flight)  # as the agent does: more groupings than slots need not exist at once

    async def ask_numbered(number: int):
        async with started:
            await ask(request(number))

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(ask_numbered(number) for number in range(calls)))
    return time.perf_counter() - wall, time.process_time() - cpu


async def engine_run(judge: str, server: RemoteServer, calls: int, in_flight: int) -> tuple[float, float]:
    """Through the engine, with a response cache on disk."""
    url = server.openai_url if judge.startswith("openai") else server.gemini_url
    with tempfile.TemporaryDirectory() as folder:
        config = EngineConfig(max_in_flight=in_flight, ledger=f"{folder}/ledger.sqlite", progress="off")
        async with Engine(judge, base_url=url, config=config) as engine:
            return await measure(engine.complete, calls, in_flight)


async def plain_run(server: RemoteServer, calls: int, in_flight: int) -> tuple[float, float]:
    """Through the SDK as its documentation shows, behind a semaphore."""
    import openai

    slots = asyncio.Semaphore(in_flight)
    async with openai.AsyncOpenAI(api_key="none", base_url=server.openai_url, max_retries=0) as client:

        async def ask(request: Request):
            async with slots:
                messages = [{"role": "system", "content": request.system}, {"role": "user", "content": request.user}]
                wanted = {
                    "type": "json_schema",
                    "json_schema": {"name": request.stage, "strict": True, "schema": request.schema},
                }
                await client.chat.completions.create(
                    model="m", messages=messages, max_tokens=4096, temperature=0, response_format=wanted
                )

        return await measure(ask, calls, in_flight)


class TopicCorpus:
    """20,000 texts of about 60 words, of 50 topics."""

    name = "texts"

    def sample(self, size: int, *, seed: int) -> list[LabelledDocument]:
        """Documents of random topics."""
        draw = random.Random(seed)
        numbers = draw.sample(range(20_000), min(size, 20_000))
        return [LabelledDocument(id=str(number), text=f"topic{number % 50} {number} {TEXT}") for number in numbers]

    def fingerprint(self) -> str:
        """The same for all: there is one such corpus."""
        return "texts"


def agent_run(judge: str, server: RemoteServer, calls: int, in_flight: int) -> tuple[float, float, int]:
    """The whole agent: wall seconds, CPU seconds and calls."""
    url = server.openai_url if judge.startswith("openai") else server.gemini_url
    agent = AgentConfig(groupings=calls // 2, criteria_sets=5, in_flight=2 * in_flight)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(
            judge,
            base_url=url,
            config=EngineConfig(max_in_flight=in_flight, ledger=f"{folder}/ledger.sqlite", progress="off"),
        )
        judge_of_engine, wall, cpu = LlmJudge(engine), time.perf_counter(), time.process_time()
        scorecard = score_corpus(TopicCorpus(), judge_of_engine, agent, groupings_path=f"{folder}/groupings.jsonl")
        return time.perf_counter() - wall, time.process_time() - cpu, scorecard.calls


def command_run(server: RemoteServer, calls: int, in_flight: int) -> tuple[float, float, int, int]:
    """`python -m diversity_jax.score` from its start to its end: wall seconds, CPU seconds, calls, and peak bytes of
    memory.
    """
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "texts.jsonl")
        corpus.write_text(
            "".join(json.dumps({"text": f"topic{number % 50} {number} {TEXT}"}) + "\n" for number in range(20_000))
        )
        settings = {
            "corpus": corpus,
            "judge": "openai:m",
            "judge_base_url": server.openai_url,
            "agent.groupings": calls // 2,
        }
        settings |= {"agent.in_flight": 2 * in_flight, "engine.max_in_flight": in_flight, "output_dir": f"{folder}/run"}
        words = [f"--config.{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", "diversity_jax.score", "--config", str(ROOT / "configs" / "score.py"), *words]
        with ChildTimes() as times:
            subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
        made = json.loads(Path(folder, "run", "scorecard.json").read_text())["calls"]
        return times.seconds, times.cpu_seconds, made, times.peak_bytes


class Report:
    """Prints lines of figures, each with the share of processor time that other machines took since the last line."""

    def __init__(self, latency: float):
        self._latency = latency
        self._ticks = processor_ticks()

    def line(self, name: str, wall: float, cpu: float, calls: int, waves: float) -> None:
        """One line; `waves` is how many latencies the calls take at best."""
        before, self._ticks = self._ticks, processor_ticks()
        share = f"{waves * self._latency / wall:7.1%} of ideal" if self._latency else ""
        if self._ticks is not None:
            others, all_ = (now - then for now, then in zip(self._ticks, before, strict=True))
            share += f" {others / all_:7.1%} stolen"
        print(
            f"{name:28} {calls / wall:8.0f} calls/s {1e3 * cpu / calls:8.2f} ms CPU/call {wall:8.2f} s {share}",
            flush=True,
        )


def processor_ticks() -> tuple[int, int] | None:
    """Ticks stolen from this virtual machine by others, and all ticks; None where the system does not report them."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    ticks = [int(word) for word in stat.read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def cpu_seconds(process: int) -> float:
    """CPU seconds that another process has used."""
    user, system = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def main():
    """Runs the comparison and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency_seconds", type=float, default=0.5)
    parser.add_argument("--in_flight", type=int, default=256)
    parser.add_argument("--calls", type=int, default=10240)
    parser.add_argument("--judges", default="openai:m", help="comma list of provider:model")
    parser.add_argument(
        "--plain", action=argparse.BooleanOptionalAction, default=True, help="also measure the plain SDK"
    )
    flags = parser.parse_args()
    os.environ.setdefault("GEMINI_API_KEY", "none")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python "
        f"{platform.python_version()}"
    )
    sizes = (flags.calls, flags.in_flight)
    waves = flags.calls / flags.in_flight
    report = Report(flags.latency_seconds)
    with serve_process("tests.cluster_agent_answers:by_first_word", latency_seconds=flags.latency_seconds) as server:
        for judge in flags.judges.split(","):
            report.line(f"engine, {judge}", *asyncio.run(engine_run(judge, server, *sizes)), flags.calls, waves)
            *times, calls = agent_run(judge, server, *sizes)
            report.line(f"whole agent, {judge}", *times, calls, 3 + calls / flags.in_flight)
        *times, calls, peak_bytes = command_run(server, *sizes)
        report.line("whole command, openai:m", *times, calls, 3 + calls / flags.in_flight)
        print(f"{'':28} {peak_bytes / 2**20:8.0f} MiB at most")
        print(
            f"{'the judge itself':28} {1e3 * cpu_seconds(server.process.pid) / server.stats()['attempts']:27.2f} "
            "ms "
            "CPU/call"
        )
        if flags.plain:
            report.line("plain openai SDK", *asyncio.run(plain_run(server, *sizes)), flags.calls, waves)


if __name__ == "__main__":
    main()
