"""Step times that MaxText's own training command logs, on synthetic rows with a model of the same shape.

    pip install maxtext   # with its extra for the machine: maxtext[tpu] or maxtext[cuda12]; Python 3.12
    python scripts/benchmarks/peers/maxtext_step.py --tied

It logs a line a step, with the seconds to three places; the mean leaves out the first steps, which compile. Its
parameters are initialised with other standard deviations, so its first losses differ from the other contestants'.
MaxText settings may be added: `--set attention=cudnn_flash_te`. Layers are scanned, with its remat policy "minimal".
"""

import json
import re
import subprocess
import sys
import tempfile

import common

_LINE = re.compile(r"completed step: (\d+).*?seconds: ([\d.]+).*?loss: ([\d.]+)")


def command(options, folder: str) -> list[str]:
    """MaxText's command line."""
    import jax

    size = options.hidden // options.heads
    platform = jax.default_backend()
    settings = {
        "run_name": "bench",
        "base_output_directory": folder,
        "dataset_type": "synthetic",
        "hardware": platform,
        "skip_jax_distributed_system": True,
        "enable_checkpointing": False,
        "enable_tensorboard": False,
        "base_emb_dim": options.hidden,
        "base_num_query_heads": options.heads,
        "base_num_kv_heads": options.kv_heads or options.heads,
        "head_dim": size,
        "base_mlp_dim": options.intermediate,
        "base_num_decoder_layers": options.layers,
        "vocab_size": options.vocab,
        "max_target_length": options.length,
        "per_device_batch_size": options.batch,
        "logits_via_embedding": options.tied,
        "remat_policy": "minimal",
        "reuse_example_batch": 1,
        "steps": options.warmup + options.steps,
        "dtype": "float32" if platform == "cpu" else "bfloat16",
    }
    words = [f"{name}={value}" for name, value in settings.items()]
    return [sys.executable, "-m", "maxtext.trainers.pre_train.train", *words, *options.set]


def main() -> None:
    """Runs MaxText and reads its log."""
    flags = common.parser(__doc__)
    flags.add_argument("--set", action="append", default=[], help="NAME=VALUE of MaxText's configuration")
    options = flags.parse_args()
    import maxtext

    seconds, losses, log = [], [], []
    details = {"framework": f"maxtext {getattr(maxtext, '__version__', '')}".strip(), "peak_bytes": None}
    with tempfile.TemporaryDirectory() as folder:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        with subprocess.Popen(command(options, folder), **streams) as process:
            assert process.stdout is not None
            for line in process.stdout:
                log = [*log[-20:], line]
                match = _LINE.search(line)
                if match is None:
                    continue
                losses.append(float(match[3]))
                if int(match[1]) >= options.warmup:
                    seconds.append(float(match[2]))
                    # It logs when a step was dispatched, not when it ended, so only the mean over steps is meaningful.
                    mean = [sum(seconds) / len(seconds)] * len(seconds)
                    figures = common.figures(mean, losses[:5], options)
                    complete = len(seconds) == options.steps
                    print(json.dumps(figures | details | {"complete": complete}), flush=True)
            status = process.wait()
    if status:
        sys.exit("".join(log))


if __name__ == "__main__":
    main()
