"""Our train step as a training run has it, with clipping, the guard against non-finite updates, and metrics.

python scripts/benchmarks/peers/diversity_jax_step.py --tied --model scan_layers=false --model remat=none
"""

import json
from pathlib import Path
import sys

import common

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))


def field(text: str) -> tuple[str, object]:
    """`attention=cudnn` as a field of LlamaConfig and its value."""
    name, _, value = text.partition("=")
    try:
        return name, json.loads(value)
    except json.JSONDecodeError:
        return name, value


def main() -> None:
    """Measures our step."""
    flags = common.parser(__doc__)
    flags.add_argument("--model", action="append", default=[], type=field, help="a field of our LlamaConfig")
    options = flags.parse_args()
    from diversity_jax.training import runtime

    runtime.keep_freed_memory()  # as the train command does for models of this size
    import jax
    import jax.numpy as jnp

    from diversity_jax.model import LlamaConfig, MeshConfig, make_mesh
    from diversity_jax.training.config import OptimizerConfig
    from diversity_jax.training.step import make_train_step

    cpu = jax.default_backend() == "cpu"
    defaults = {"scan_layers": not cpu, "compute_dtype": "float32" if cpu else "bfloat16"}
    model = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        intermediate_size=options.intermediate,
        num_layers=options.layers,
        num_heads=options.heads,
        num_kv_heads=options.kv_heads or None,
        max_length=options.length,
        **(defaults | {"tie_embeddings": options.tied} | dict(options.model)),
    )
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    init_state, train_step = make_train_step(model, OptimizerConfig(schedule="constant"), mesh)
    state = init_state(jax.random.key(options.seed))
    rows, length = options.batch, options.length
    tokens = jax.random.randint(jax.random.key(options.seed + 1), (rows, length + 1), 0, options.vocab, jnp.int32)
    batch = {"tokens": tokens, "component": jnp.zeros(rows, jnp.int32)}

    def step() -> float:
        nonlocal state
        state, metrics = jax.block_until_ready(train_step(state, batch))
        return float(metrics["loss"])

    device = jax.local_devices()[0]
    details = {"framework": f"jax {jax.__version__}", "device": device.device_kind}
    peak = lambda: (device.memory_stats() or {}).get("peak_bytes_in_use")  # noqa: E731
    common.measure(step, options, peak, parameters=model.parameter_count, **details)


if __name__ == "__main__":
    main()
