"""Ahead-of-time compilation: reading programs, targets, search, the command, and a small model for each kind of
chip.
"""

import dataclasses
import importlib.util
import os
from pathlib import Path
import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
import numpy as np
import pytest

from diversity_jax.aot import compile as compile_cache
from diversity_jax.aot import hlo
from diversity_jax.aot.compile import arguments
from diversity_jax.aot.report import (
    Compiled,
    estimate,
    executed_flops_per_token,
    flags,
    in_parts,
    lines,
    ranking,
    search,
    state_bytes,
    suggestion,
)
from diversity_jax.aot.worker import CompileRequest, parse_target
from diversity_jax.core.errors import InputError
from diversity_jax.model import LlamaConfig, MeshConfig, make_mesh
from diversity_jax.model.config import LoraConfig
from diversity_jax.training.config import OptimizerConfig
from diversity_jax.training.throughput import flops_per_token

GIB = 2**30
COMPILERS = Path(__file__).resolve().parents[1] / ".venv" / "compilers"  # where scripts/test puts libtpu
SMALL = LlamaConfig(
    vocab_size=512,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=4,
    max_length=256,
    remat="save_matmuls",
)


def request(topology="v5e:2x2", **fields) -> CompileRequest:
    """A small step for a target."""
    asked = {
        "model": SMALL,
        "optimizer": OptimizerConfig(schedule="constant"),
        "mesh": MeshConfig(),
        "batch_size": 8,
        "sequence_length": 256,
    }
    return CompileRequest(target=parse_target(topology), effort="O1", **(asked | fields))


def report(temporaries: float, *, fits: bool = True) -> dict:
    """What a worker answers about a program of this size, in GiB."""
    if not fits:
        return {
            "fits": False,
            "attention": "splash",
            "attention_reason": "",
            "mesh": {},
            "needed_bytes": temporaries * GIB,
        }
    memory = {"arguments": GIB, "outputs": 0, "temporaries": temporaries * GIB, "code": 0, "host": 0}
    made = {"collectives": [], "kernels": {}, "unknown_loops": 0, "hbm_traffic_bytes": 1e9}
    return {
        "fits": True,
        "attention": "splash",
        "attention_reason": "",
        "mesh": {"fsdp": 4},
        "memory_bytes": memory,
    } | made


def described(asked: CompileRequest, temporaries: float) -> Compiled:
    """As the compiler answers: a program that is too large is not made."""
    fits = temporaries + 1 <= asked.target.chip.hbm_bytes / GIB
    made_report = report(temporaries if fits else temporaries + 1, fits=fits)
    figures = estimate(asked, made_report) if fits else None
    return Compiled(request=asked, report=made_report, estimate=figures)


@pytest.fixture(scope="module")
def program():
    """A loop of five rounds on 8 devices, in each of which they sum a 64 x 64 float32 product."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:8])

    def run(x):
        return jax.lax.scan(lambda carry, _: (jnp.tanh(jax.lax.psum(carry @ carry, "fsdp")), None), x, length=5)[0]

    summed = jax.jit(
        jax.shard_map(run, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(), check_vma=False)
    )
    return summed.lower(jax.ShapeDtypeStruct((64, 64), jnp.float32)).compile().as_text()


def test_a_loops_collectives_count_once_a_round(program):
    traffic = hlo.measure(program, [0] * 8)
    assert traffic.collectives == {("all-reduce", 8, False): [5, 5 * 64 * 64 * 4, 5 * 2 * 7 / 8 * 64 * 64 * 4]}
    assert traffic.unknown_loops == 0
    assert traffic.hbm_bytes > 5 * 64 * 64 * 4


def test_a_group_over_two_slices_crosses_the_network(program):
    assert list(hlo.measure(program, [0] * 4 + [1] * 4).collectives) == [("all-reduce", 8, True)]


def slice_program(kind: str, target: str, sent: str, received: str) -> str:
    """The form in which the compiler for TPUs hands an exchange between slices to the host, three times, beside a sum
    inside the slice.
    """
    attributes = (
        '_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="x_0",'
        f"_xla_megascale_target={target}"
    )
    attributes += f',_xla_megascale_transfer_type="{kind}"'
    transfer = f"is_host_transfer=true, frontend_attributes={{{attributes}}}"
    return f"""HloModule jit_step, is_scheduled=true, num_partitions=4

%body (p: (s32[])) -> (s32[]) {{
  %p = (s32[]) parameter(0)
  %after-all = token[] after-all()
  %x = {sent} constant(0)
  %sum = f32[256]{{0}} all-reduce(%x), channel_id=7, replica_groups={{{{0,1,2,3}}}}, to_apply=%add
  %send = ({sent}, u32[], token[]) send(%x, %after-all), channel_id=2, {transfer}
  %recv = ({received}, u32[], token[]) recv(%after-all), channel_id=1, {transfer}
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  ROOT %recv-done = ({received}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
}}

ENTRY %main (p: (s32[])) -> (s32[]) {{
  %p = (s32[]) parameter(0)
  ROOT %while = (s32[]) while(%p), condition=%c, body=%body, backend_config={{"known_trip_count":{{"n":"3"}}}}
}}
"""


@pytest.mark.parametrize(
    ("kind", "target", "sent", "received", "wanted"),
    [
        ("ALL_REDUCE", '"{1,2}x{0:3}"', "bf16[64,8]{1,0}", "bf16[64,8]{1,0}", ("all-reduce", 2, 1024, 1024)),
        ("ALL_GATHER", '"{1,2,3,4}x{0:3}"', "f32[64]{0}", "f32[256]{0}", ("all-gather", 4, 1024, 768)),
        ("REDUCE_SCATTER", '"{1:4}x{0:3}"', "f32[256]{0}", "f32[64]{0}", ("reduce-scatter", 4, 1024, 768)),
        ("ALL_TO_ALL", "{{100000,200000},{100001,200001}}", "f32[256]{0}", "f32[256]{0}", ("all-to-all", 2, 1024, 512)),
        (
            "ONE_TO_ONE",
            "{{100000->200000},{200000->100000}}",
            "f32[256]{0}",
            "f32[256]{0}",
            ("collective-permute", 2, 1024, 1024),
        ),
    ],
)
def test_what_tpu_slices_exchange_is_read_from_the_hosts_transfers(kind, target, sent, received, wanted):
    name, size, payload, ring = wanted
    collectives = hlo.measure(slice_program(kind, target, sent, received), [0, 1] * 4).collectives
    assert collectives == {
        (name, size, True): [3, 3 * payload, 3 * ring],
        ("all-reduce", 4, False): [3, 3 * 1024, 3 * 1536],
    }


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("replica_groups={{0,1},{2,3}}, x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,4]<=[8], x", [[0, 1, 2, 3], [4, 5, 6, 7]]),
        ("replica_groups=[4,2]<=[2,4]T(1,0), x", [[0, 4], [1, 5], [2, 6], [3, 7]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
        ("no groups", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ],
)
def test_groups_of_devices_in_every_notation(text, wanted):
    assert hlo.groups(text, 8) == wanted


@pytest.mark.parametrize(
    ("name", "devices", "slices"), [("v5e:4x4", 16, 1), ("v5p:2x2x4*2", 32, 2), ("h100:8*2", 16, 2), ("h200:1", 1, 1)]
)
def test_targets_have_as_many_devices_as_their_names_say(name, devices, slices):
    target = parse_target(name)
    assert (target.devices, target.slices, target.name) == (devices, slices, name)


@pytest.mark.parametrize(
    ("name", "ours", "devices"),
    [
        ("v6e-16", "v6e:4x4", 16),
        ("v5litepod-256", "v5e:16x16", 256),
        ("v5e-8", "v5e:2x4", 8),
        ("v4-32", "v4:2x2x4", 16),
        ("v5p-128*2", "v5p:4x4x4*2", 128),
        ("v5p-4x4x12", "v5p:4x4x12", 192),
        ("tpu7x-16", "tpu7x:2x2x2", 16),
        ("TPU7x-2x2x1", "tpu7x:2x2x1", 8),
    ],
)
def test_names_of_clouds_are_ours_too(name, ours, devices):
    target = parse_target(name)
    assert (target.name, target.devices) == (ours, devices)


@pytest.mark.parametrize(
    "name", ["v5e", "v5e:4x4x4", "v9:2x2", "h100:16", "v4:2x2", "v5e:0x4", "v5p-4x4", "v6e-4x4x4", "v9-16"]
)
def test_unknown_targets_are_refused_with_an_example(name):
    with pytest.raises(InputError, match=r".*(such as|write) "):
        parse_target(name)


def test_the_command_asks_for_a_topology():
    with pytest.raises(InputError, match="--topology v5e:4x4"):
        arguments(["--config", "configs/llama_350m.py"])


def test_a_request_and_the_code_that_it_depends_on_make_the_key_of_a_compiled_step():
    key = compile_cache.key(request("h200:1"))
    assert key == compile_cache.key(request("h200:1")) != compile_cache.key(request("h200:1", batch_size=16))


def test_recomputation_costs_what_it_runs_again():
    none, save_matmuls, full = (
        executed_flops_per_token(dataclasses.replace(SMALL, remat=remat), 256, "splash")
        for remat in ("none", "save_matmuls", "full")
    )
    assert none == save_matmuls < full < 4 / 3 * none
    # Without attention's scores, executed and counted products are the same.
    no_scores = dataclasses.replace(SMALL, sliding_window=1)
    assert executed_flops_per_token(no_scores, 256, "splash") == pytest.approx(
        flops_per_token(no_scores, 1, causal=False), rel=0.01
    )


def test_adapters_spare_gradients_of_frozen_matrices_and_their_moments():
    lora = LoraConfig(rank=2, matrices=("query", "down"))
    matrices = 2 * SMALL.layer_matrix_parameters + 512 * 256
    executed = executed_flops_per_token(SMALL, 256, "splash") - executed_flops_per_token(SMALL, 256, "splash", lora)
    assert executed == 2 * matrices - 2 * 2 * (256 * 256 + 512 * 256)
    adapters = lora.parameter_count(SMALL)
    assert state_bytes(request(lora=lora), 2) == (4 * SMALL.parameter_count + 12 * adapters) / 2
    assert estimate(request(lora=lora), report(1))["flops"]["model"] == 8 * 256 * flops_per_token(
        SMALL, 256, causal=False, lora=lora
    )


def test_what_binds_takes_longest_and_the_span_is_from_all_at_once_to_one_after_the_other():
    step_report = report(1) | {"hbm_traffic_bytes": 819e9}
    step_report["collectives"] = [
        {"crosses_slices": False, "sent_bytes": 200e9},
        {"crosses_slices": True, "sent_bytes": 3.125e9},
    ]
    figures = estimate(request("v5e:2x2"), step_report)
    assert figures["binds"] == "interconnect"
    assert figures["seconds"] == pytest.approx(
        {"compute": figures["seconds"]["compute"], "memory": 1, "interconnect": 2, "network": 1}
    )
    np.testing.assert_allclose(figures["step_seconds"], [2, 4 + figures["seconds"]["compute"]])
    assert figures["mfu"][0] < figures["mfu"][1] < 1


def test_search_ranks_what_fits_and_puts_in_parts_what_does_not():
    asked, tried = request(gradient_accumulation=4), []

    def compile_step(candidate):
        tried.append(candidate)
        size = {"full": 4, "save_matmuls": 20, "none": 40}[candidate.model.remat]
        return described(candidate, size * candidate.batch_size / 8 / candidate.gradient_accumulation)

    results = search(asked, compile_step, limit=40, say=print)
    assert tried[0].gradient_accumulation == 1  # whole at first, whatever the configuration says
    assert all(result.fits for result in results)
    assert [result.estimate["tokens_per_second"][0] for result in results] == sorted(
        (result.estimate["tokens_per_second"][0] for result in results), reverse=True
    )
    requests = [
        result.request
        for result in results
        if result.request.model.remat == "save_matmuls" and result.request.batch_size == 8
    ]
    assert requests
    assert all(compiled.gradient_accumulation == 2 for compiled in requests)
    assert len(
        {
            (candidate.mesh, candidate.batch_size, candidate.model.remat, candidate.gradient_accumulation)
            for candidate in tried
        }
    ) == len(tried)
    assert "tokens/s" in ranking(results)[0]
    assert len(ranking(results)) == len(results) + 1


def test_the_flags_of_several_slices_say_what_crosses_them():
    asked = request("v5e:2x2*2")
    best = dataclasses.replace(asked, mesh=MeshConfig(data=2, fsdp=4, network_data=2))
    assert flags(asked, best) == "--config.mesh.data=2 --config.mesh.fsdp=4 --config.mesh.network_data=2"


def test_search_stops_at_its_limit():
    lines = []
    results = search(request(), lambda candidate: described(candidate, 1), limit=3, say=lines.append)
    assert len(results) == 3
    assert "--limit" in lines[-1]


def test_a_step_that_no_number_of_parts_makes_fit_stays_whole():
    large = dataclasses.replace(SMALL, hidden_size=8192, intermediate_size=32768, num_layers=32)
    assert in_parts(described(request(model=large), 100)) is None
    assert suggestion(request(model=large), lambda candidate: pytest.fail("compiled for nothing")) is None


def test_a_suggestion_fits_and_says_which_flags_make_it():
    asked = request()
    suggested = suggestion(asked, lambda candidate: described(candidate, 20 / candidate.gradient_accumulation))
    assert suggested.fits
    assert flags(asked, suggested.request) == "--config.train.gradient_accumulation=2"
    assert any("binds: capacity" in line for line in lines(described(asked, 20)))


@pytest.fixture
def compilers(monkeypatch):
    """Compilers that stand beside the environment are found by tests and by the processes they start."""
    if COMPILERS.is_dir():
        monkeypatch.syspath_prepend(COMPILERS)
        monkeypatch.setenv(
            "PYTHONPATH", os.pathsep.join([str(COMPILERS), *filter(None, [os.environ.get("PYTHONPATH")])])
        )


@pytest.mark.slow
@pytest.mark.usefixtures("compilers")
@pytest.mark.parametrize(
    ("topology", "package"), [("v5e:2x2", "libtpu"), ("v5e:2x2*2", "libtpu"), ("h100:1", "jax_cuda12_plugin")]
)
def test_a_small_model_compiles_for(topology, package):
    """The whole way, in the compiler's own process; where the compiler is missing, the line that says so."""
    slices = parse_target(topology).slices
    asked = request(topology, mesh=MeshConfig(data=slices, network_data=slices))
    if importlib.util.find_spec(package) is None:
        with pytest.raises(
            InputError,
            match=rf"--topology {re.escape(topology)}: its compiler is not installed; pip install .* brings {package}",
        ):
            compile_cache.compile_step(asked, folder=None)
        pytest.skip(f"{package} is not installed: nothing compiled for {topology}")
    step_report = compile_cache.compile_step(asked, folder=None)
    figures = estimate(asked, step_report)
    assert step_report["fits"]
    assert figures["fits"]
    # Parameters and Adam's moments are float32 and cut over the devices of a slice; the batch is small beside them.
    in_slice = asked.target.devices // slices
    state = 12 * SMALL.parameter_count / in_slice
    assert state <= step_report["memory_bytes"]["arguments"] < 1.5 * state  # TPUs pad heads of 64 to 128
    assert step_report["unknown_loops"] == 0
    if slices > 1:  # gradients, in two or four bytes, of which each device of a slice holds a part
        between = [collective for collective in step_report["collectives"] if collective["crosses_slices"]]
        assert {collective["kind"] for collective in between} == {"all-reduce"}
        assert 2 <= sum(collective["payload_bytes"] for collective in between) * in_slice / SMALL.parameter_count <= 4
        assert figures["seconds"]["network"] > 0
    kernels = " ".join(step_report["kernels"])
    if package == "libtpu":
        assert {"all-gather"} <= {collective["kind"] for collective in step_report["collectives"]}
        assert step_report["kernels"]["splash_mha_fwd_residuals"] == SMALL.num_layers  # once: its output is kept
    else:
        assert step_report["collectives"] == []
        assert "fmhaSoftmaxBackward" in kernels
    assert figures["seconds"]["compute"] > 0
    assert figures["seconds"]["memory"] > 0
