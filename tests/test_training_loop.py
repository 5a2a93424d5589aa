"""The training loop's callbacks: samples, goodput, cached programs, traces and saving on failure, without copies or
waits.
"""

from fractions import Fraction
import json
import logging
import math
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
import types

import jax
import numpy as np
import pytest

from diversity_jax.core.errors import InputError
from diversity_jax.mixtures.mixture import Mixture
from diversity_jax.model import LLAMA, MeshConfig
from diversity_jax.training import callbacks, loop, runtime, throughput
from diversity_jax.training import log as training_log
from diversity_jax.training.checkpoint import Checkpoints
from diversity_jax.training.config import OptimizerConfig, TrainConfig
from diversity_jax.training.data import prepare
from diversity_jax.training.loop import train
from diversity_jax.training.runtime import keep_programs
from diversity_jax.training.throughput import Attempt, goodput, read_attempts
from tests.json_lines import json_lines
from tests.mixture_folders import build_mixture

MODEL = LLAMA["llama_tiny"](vocab_size=384, num_layers=1, hidden_size=32, intermediate_size=64, num_heads=2)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    folder = build_mixture(
        tmp_path_factory.mktemp("loop"), {"a": Fraction(1, 3), "b": Fraction(2, 3)}, sequence_length=16, documents=60
    )
    return Mixture.load(folder)


def run(mixture, output, **fields):
    defaults = {
        "steps": 6,
        "batch_size": 8,
        "log_every": 2,
        "eval_batches": 1,
        "checkpoint_every": 2,
        "tensorboard": False,
    }
    config = TrainConfig(**(defaults | {"compilation_cache": None} | fields))
    return train(
        mixture,
        MODEL,
        OptimizerConfig(learning_rate=1e-2, total_steps=100),
        config,
        MeshConfig(fsdp=4, tensor=2),
        output,
    )


@pytest.fixture(scope="module")
def finished(mixture, tmp_path_factory):
    """A run with everything on, on a mesh of eight devices."""
    output = tmp_path_factory.mktemp("finished")
    prompts = ("a1", "", "b")
    options = {
        "sample_every": 2,
        "sample_prompts": prompts,
        "sample_tokens": 8,
        "eval_every": 3,
        "profile_start": 2,
        "profile_steps": 1,
    }
    return output, run(mixture, output, **options)


def test_samples_are_decoded_text_at_their_own_cadence(finished):
    output, _ = finished
    samples = json_lines(output / "samples.jsonl")
    assert [(line["step"], line["prompt"]) for line in samples] == [
        (step, prompt) for step in (2, 4, 6) for prompt in ("a1", "", "b")
    ]
    assert all(isinstance(line["text"], str) and len(line["text"]) <= 8 for line in samples)


def test_held_out_losses_come_for_each_component_at_their_own_cadence(finished):
    output, result = finished
    evaluations = [line for line in json_lines(output / "metrics.jsonl") if "eval/loss" in line]
    assert [line["step"] for line in evaluations] == [0, 3, 6]
    assert all({"eval/a/loss", "eval/b/loss"} <= set(line) for line in evaluations)
    assert result.held_out["all"] == (evaluations[0]["eval/loss"], evaluations[-1]["eval/loss"])


def test_the_summary_says_what_is_not_known(finished):
    output, result = finished
    summary = json.loads((output / "summary.json").read_text())
    assert summary == result.summary
    assert (summary["mfu"], summary["mfu_causal"], summary["steps"], summary["device_memory_bytes"]) == (
        None,
        None,
        6,
        None,
    )
    assert summary["tokens"] == 6 * 8 * 16
    assert 0 <= summary["input_wait_share"] <= 1
    assert 0 < summary["goodput"]["share"] < 1
    assert summary["compile_seconds"] > 0
    assert summary["model_flops_per_second_causal"] < summary["model_flops_per_second"]


def test_chosen_steps_are_traced(finished):
    output, _ = finished
    assert len(list((output / "profile").rglob("*.xplane.pb"))) == 1
    assert len(list((output / "profile").rglob("perfetto_trace.json.gz"))) == 1


def test_a_step_is_dispatched_before_the_metrics_of_the_one_before_are_read(mixture, tmp_path, monkeypatch):
    events = []
    make, read = loop.make_train_step, throughput.StepWindows._read

    def recording(*arguments, **named):
        init, step = make(*arguments, **named)
        return init, lambda state, batch, frozen: events.append("dispatch") or step(state, batch, frozen)

    def reading(self):
        events.append("read")
        yield from read(self)

    monkeypatch.setattr(loop, "make_train_step", recording)
    monkeypatch.setattr(throughput.StepWindows, "_read", reading)
    run(mixture, tmp_path, steps=4, log_every=1, checkpoint_every=100)
    assert events == ["dispatch", "dispatch", "read", "dispatch", "read", "dispatch", "read", "read"]


def test_a_hidden_copy_in_the_loop_is_an_error(mixture, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "prepare", lambda *a: {name: np.asarray(x) for name, x in prepare(*a).items()})
    with pytest.raises(Exception, match=r"[Dd]isallowed host-to-device transfer"):
        run(mixture, tmp_path)


def test_a_failing_run_saves_what_it_reached(mixture, tmp_path, monkeypatch, caplog):
    def failing(*arguments):
        if arguments[-1] == 5:
            raise InputError("row 7 is damaged")
        return prepare(*arguments)

    monkeypatch.setattr(loop, "prepare", failing)
    with caplog.at_level(logging.ERROR), pytest.raises(InputError, match="row 7 is damaged"):
        run(mixture, tmp_path, checkpoint_every=100)
    assert "InputError after step 5: emergency checkpoint of step 5 saved" in caplog.text
    monkeypatch.undo()
    resumed = run(mixture, tmp_path, checkpoint_every=100)
    assert resumed.summary["goodput"]["sittings"] == 2
    uninterrupted = run(mixture, tmp_path / "whole", checkpoint_every=100)
    assert resumed.held_out["all"][1] == uninterrupted.held_out["all"][1]


def test_retention_by_number_and_for_ever(mixture, tmp_path):
    run(mixture, tmp_path, steps=11, checkpoint_every=1, keep_checkpoints=2, keep_every_steps=4, log_every=50)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2, keep_every_steps=4)
    assert checkpoints.steps == [4, 8, 10, 11]
    checkpoints.close()


def test_retention_by_time(mixture, tmp_path):
    run(mixture, tmp_path, steps=5, checkpoint_every=1, keep_checkpoints=1, keep_every_minutes=60, log_every=50)
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=1, keep_every_minutes=60)
    assert checkpoints.steps == [1, 5]
    checkpoints.close()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"keep_every_steps": 3, "checkpoint_every": 2},
            "keep_every_steps=3: must be a multiple of checkpoint_every=2",
        ),
        ({"grace_seconds": 0}, "grace_seconds=0: must be above 0"),
        ({"sample_prompts": "abc"}, "sample_prompts='abc': must be a tuple"),
        ({"sample_temperature": -1.0}, "sample_temperature=-1.0"),
        ({"profile_steps": -1}, "profile_steps=-1"),
        ({"grace_seconds": math.inf}, "grace_seconds=inf: must be above 0 and finite"),
        ({"keep_every_minutes": math.inf}, "keep_every_minutes=inf: must be finite and at least 0"),
        ({"seed": 2**70}, "must be a whole number of at most 64 bits"),
        ({"steps": 2.5}, "train.steps=2.5: must be a whole number"),
    ],
    ids=str,
)
def test_impossible_settings_are_refused(fields, message):
    with pytest.raises(InputError) as error:
        TrainConfig(**fields)
    assert message in str(error.value)


@pytest.mark.parametrize("fields", [{"clip_norm": math.inf}, {"epsilon": 1e-50}, {"learning_rate": 1e39}], ids=str)
def test_optimizers_that_float32_cannot_hold_are_refused(fields):
    with pytest.raises(InputError, match=f"optimizer.{next(iter(fields))}=.* finite"):
        OptimizerConfig(**fields)


@pytest.mark.parametrize(
    ("fields", "warned"),
    [({"total_steps": 4}, True), ({"total_steps": 4, "final_ratio": 0.1}, False), ({}, False)],
    ids=str,
)
def test_steps_after_the_end_of_the_decay_are_named(fields, warned, caplog):
    loop._warn_of_idle_steps(OptimizerConfig(**fields).for_run(6), 6)
    assert ("steps 5 to 6 have a learning rate of 0" in caplog.text) == warned


def test_a_trace_that_was_never_begun_is_named(caplog):
    settings = TrainConfig(profile_start=10, profile_steps=2)
    trace = callbacks.StepTrace(types.SimpleNamespace(output_dir=Path("run"), config=settings))
    trace.before_step(5)
    trace.on_end(6, None)
    assert "train.profile_start=10, and the run ended at step 6" in caplog.text


@pytest.mark.parametrize("failing", ["start_trace", "stop_trace"])
def test_a_trace_that_cannot_be_written_ends_no_run(failing, caplog, monkeypatch):
    def fail(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: vm.xplane.pb; No space left on device")

    monkeypatch.setattr(jax.profiler, "start_trace", lambda *_, **__: None)
    monkeypatch.setattr(jax.profiler, failing, fail)
    settings = TrainConfig(profile_start=0, profile_steps=1)
    trace = callbacks.StepTrace(types.SimpleNamespace(output_dir=Path("run"), config=settings))
    for step in range(3):
        trace.before_step(step)
        trace.on_step(throughput.StepResult(step=step + 1, state=None, metrics={}, input_wait_seconds=0.0))
    trace.close()
    assert caplog.text.count("no profiler trace: RESOURCE_EXHAUSTED") == 1


def test_in_another_thread_sigterm_is_left_as_it_is():
    entered = []
    thread = threading.Thread(target=lambda: entered.append(runtime.StopRequest(1, lambda: None).__enter__()))
    thread.start()
    thread.join()
    assert not entered[0].asked
    entered[0].__exit__()


def test_ctrl_c_inside_a_step_saves_it_and_a_second_one_is_raised_at_once(mixture, tmp_path, monkeypatch):
    def interrupted(*args, **fields):
        init_state, train_step = make_train_step(*args, **fields)

        def step(*args):
            result = train_step(*args)  # its argument is donated: without the result there is no state
            steps.append(result)
            for _ in range(presses if len(steps) == 3 else 0):
                signal.raise_signal(signal.SIGINT)
            return result

        return init_state, step

    make_train_step = loop.make_train_step
    monkeypatch.setattr(loop, "make_train_step", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in a shell's background ignores it
    try:
        for presses, saved in ((1, 3), (2, None)):
            steps, output = [], tmp_path / str(presses)
            with pytest.raises(KeyboardInterrupt):
                run(mixture, output, checkpoint_every=100)
            assert (len(steps), Checkpoints(output / "checkpoints").last_complete) == (3, saved)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_after_ctrl_c_no_thread_of_a_save_keeps_the_process():
    code = (
        "import threading\nfrom diversity_jax import train\nfrom diversity_jax.training import runtime\n"
        "soon = runtime.exit_soon\nruntime.exit_soon = lambda status: soon(status, 0.1)\n"
        "def main(config):\n    threading.Thread(target=threading.Event().wait).start()\n    raise KeyboardInterrupt\n"
        "train.main = main\ntrain.run_command(None)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert ended.returncode == 130


@pytest.mark.parametrize(
    ("start", "says"),
    [(4, "step 2: lower .* branch off there"), (2, "no checkpoint is older"), (0, "no checkpoint is older")],
)
def test_steps_that_stay_non_finite_name_a_checkpoint_from_before_them(start, says):
    saved = types.SimpleNamespace(steps=[2, 4, 6, 8] if start else [2], wait=lambda: None)
    config = TrainConfig(max_skipped_steps=3)
    report = callbacks.StepReport(types.SimpleNamespace(config=config, checkpoints=saved, writer=None), [])
    records = [{"applied": step < start} for step in range(12)]
    window = throughput.StepWindow(step=12, records=records, timed_steps=12, seconds=1.0, input_wait_seconds=0.0)
    with pytest.raises(callbacks.LossStaysNonFinite, match=f"3 steps in a row, up to step {start + 3}; .*{says}"):
        report.on_window(window)


def test_a_checkpoint_due_after_a_skipped_step_waits_for_a_step_that_is_not():
    saved, config = [], TrainConfig(checkpoint_every=2)
    checkpoints = types.SimpleNamespace(save=lambda step, state, info: saved.append(step))
    saving = callbacks.Saving(
        types.SimpleNamespace(config=config, checkpoints=checkpoints, clock=throughput.StepClock()),
        {},
        start=0,
        saved=None,
    )
    for step in range(1, 11):
        if saving.due(step):
            metrics = {"applied": np.float32(step not in (4, 5, 6, 8))}
            saving.on_step(throughput.StepResult(step=step, state=0, metrics=metrics, input_wait_seconds=0.0))
    assert saved == [2, 7, 9, 10]


def test_a_prompt_that_leaves_no_room_is_refused(mixture, tmp_path):
    with pytest.raises(InputError, match=r"more than model.max_length=16"):
        run(mixture, tmp_path, sample_prompts=("x" * 250,))


def test_samples_of_an_attempt_that_was_lost_are_not_shown(tmp_path):
    records = [(step, prompt, f"{step} first") for step in (20, 40, 60) for prompt in ("a", "b")]
    records += [(40, prompt, "40 again") for prompt in ("a", "b")]
    lines = [json.dumps({"step": step, "prompt": prompt, "text": text}) + "\n" for step, prompt, text in records]
    (tmp_path / "samples.jsonl").write_text("".join(lines))
    shown = {20: "20 first", 40: "40 again"}
    assert training_log.read_samples(tmp_path / "samples.jsonl") == {"a": shown, "b": shown}


def attempt(first, last, seconds, began, ended):
    return Attempt(began=began, last=ended, first_step=first, last_step=last, step_seconds=seconds)


def test_goodput_counts_only_steps_that_were_not_done_again():
    killed = attempt(0, 100, 50.0, 0.0, 100.0)
    resumed = attempt(80, 200, 60.0, 200.0, 300.0)
    result = goodput([killed, resumed])
    assert result.share == pytest.approx((50 * 0.8 + 60) / 200)
    assert result.share_with_pauses == pytest.approx((50 * 0.8 + 60) / 300)
    assert (result.sittings, result.steps_done_again) == (2, 20)
    set_back = goodput([killed, attempt(100, 200, 60.0, -50.0, 50.0)])
    assert set_back.share_with_pauses == set_back.share == pytest.approx(110 / 200)
    twice = goodput([killed, attempt(80, 90, 5.0, 100.0, 110.0), attempt(50, 200, 75.0, 110.0, 200.0)])
    assert twice.share == pytest.approx((50 * 0.5 + 75) / 200)
    assert twice.steps_done_again == 60
    assert goodput([]).share == 0


def test_a_clock_that_is_set_back_changes_no_duration(tmp_path, monkeypatch):
    parts = {"clock": throughput.StepClock(), "compile_clock": runtime.CompileClock()}
    log = callbacks.GoodputLog(
        types.SimpleNamespace(output_dir=tmp_path, writer="w", **parts), began=time.time(), start=0
    )
    monkeypatch.setattr(callbacks.time, "time", lambda: 0.0)
    log.save(now=True)
    assert 0 < log.attempt.last - log.attempt.began < 600


def test_the_record_of_attempts_outlives_a_process(mixture, tmp_path):
    run(mixture, tmp_path, steps=2)
    run(mixture, tmp_path, steps=4, allow_changed=("train.steps",))
    attempts = read_attempts(tmp_path / "goodput.json")
    assert [(attempt.first_step, attempt.last_step) for attempt in attempts] == [(0, 2), (2, 4)]
    assert all(attempt.evaluation_seconds > 0 and attempt.save_seconds > 0 for attempt in attempts)
    (tmp_path / "goodput.json").write_text("{}")
    with pytest.raises(InputError, match=r"goodput.json: sittings is none; expected a list"):
        run(mixture, tmp_path, steps=4, allow_changed=("train.steps",))


def test_when_the_grace_period_is_over_the_process_leaves(monkeypatch, caplog):
    left = threading.Event()
    monkeypatch.setattr(runtime.os, "_exit", lambda status: left.set())
    monkeypatch.setattr(runtime.logging, "shutdown", lambda: None)
    with caplog.at_level(logging.ERROR), runtime.StopRequest(0.05, lambda: 40) as stop:
        stop._ask()
        assert left.wait(5)
    assert "train.grace_seconds=0.05 and is given up; the last whole checkpoint is step 40" in caplog.text


def test_programs_are_kept_where_asked_and_a_given_folder_is_left_alone(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    assert keep_programs(str(tmp_path)) == before
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert keep_programs(None) is None
        (tmp_path / "file").touch()
        assert keep_programs(str(tmp_path / "file" / "programs")) is None
        assert jax.config.jax_compilation_cache_dir is None
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        folder = keep_programs("user")
        assert folder.startswith(str(tmp_path / "diversity_jax" / "programs" / "cpu-"))
        assert jax.config.jax_compilation_cache_dir == folder
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
