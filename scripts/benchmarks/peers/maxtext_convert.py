"""Converts a Hugging Face folder of any Llama to a MaxText checkpoint and back, with MaxText's own converters.

    python scripts/benchmarks/peers/maxtext_convert.py in  HUGGING_FACE CHECKPOINT
    python scripts/benchmarks/peers/maxtext_convert.py out CHECKPOINT/0/items HUGGING_FACE OUTPUT

Its converters know only published models, by name: this passes the sizes in `config.json` under the name of one of
them. `in` prints the settings that MaxText's `train` then needs. `out` takes the sizes and the tokenizer from the
folder that the training was initialised from. Weights are float32, layers are scanned.
"""

import argparse
import functools
import json
import os
from pathlib import Path
import sys

NAME = "llama3.1-8b"  # its family of weights and its block; every size of it is overridden


def settings(model: Path) -> dict[str, object]:
    """MaxText's settings for the Llama in a Hugging Face folder."""
    config = json.loads((model / "config.json").read_text())
    rotary = config.get("rope_parameters") or config
    return {
        "model_name": NAME,
        "override_model_config": True,
        "base_emb_dim": config["hidden_size"],
        "base_num_query_heads": config["num_attention_heads"],
        "base_num_kv_heads": config["num_key_value_heads"],
        "head_dim": config["head_dim"],
        "base_mlp_dim": config["intermediate_size"],
        "base_num_decoder_layers": config["num_hidden_layers"],
        "vocab_size": config["vocab_size"],
        "normalization_layer_epsilon": config["rms_norm_eps"],
        "logits_via_embedding": config["tie_word_embeddings"],
        "normalize_embedding_logits": False,  # it divides tied logits by the square root of the width otherwise
        # Under this name MaxText stretches long wavelengths as Llama 3.1 does, whatever rope_type says, unless told not
        # to; without the second line the first loss is off by 1e-4, and nothing says so.
        "rope_type": "llama3.1",
        "rope_use_scale": False,
        "rope_max_timescale": int(rotary["rope_theta"]),
        "scan_layers": True,
        "weight_dtype": "float32",
        "hardware": "cpu",
        "skip_jax_distributed_system": True,
    }


def words(values: dict[str, object]) -> list[str]:
    """Settings as MaxText's command line takes them."""
    return [f"{name}={value}" for name, value in values.items()]


def base_config() -> str:
    """MaxText's file of defaults."""
    import maxtext

    return str(Path(maxtext.__file__).parent / "configs" / "base.yml")


def register(model: Path) -> None:
    """Puts the folder's configuration in the place of the published model's."""
    from maxtext.checkpoint_conversion.utils import hf_model_configs
    import transformers

    hf_model_configs.HF_MODEL_CONFIGS[NAME] = transformers.AutoConfig.from_pretrained(model)


def main() -> None:
    """The command line."""
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = flags.add_subparsers(required=True, dest="command")
    inward, outward = commands.add_parser("in"), commands.add_parser("out")
    inward.add_argument("model", type=Path)
    inward.add_argument("output", type=Path)
    outward.add_argument("checkpoint", type=Path)
    outward.add_argument("model", type=Path)
    outward.add_argument("output", type=Path)
    outward.add_argument("--max-shard-gigabytes", type=float, default=3)
    options = flags.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    # Of two devices it makes arrays; of one it would hand Orbax tensors not read yet, which Orbax refuses.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    values = settings(options.model) | {"base_output_directory": options.output.absolute()}
    register(options.model)
    if options.command == "in":
        from maxtext.checkpoint_conversion import to_maxtext

        argv = ["to_maxtext", base_config(), *words(values)]
        to_maxtext.main(argv, hf_model_path=str(options.model), save_dtype="float32", simulated_cpu_devices_count=2)
        print(" ".join(words(settings(options.model))))
        return
    from absl import flags as absl_flags
    from maxtext.checkpoint_conversion import to_huggingface
    from maxtext.checkpoint_conversion.utils import utils

    largest = int(options.max_shard_gigabytes * 1e9)
    utils.shard_checkpoint = functools.partial(utils.shard_checkpoint, max_shard_size=largest)
    absl_flags.FLAGS([sys.argv[0], f"--hf_model_path={options.model}"])
    loaded = {"load_parameters_path": options.checkpoint.absolute()}
    to_huggingface.main(["to_huggingface", base_config(), *words(values | loaded)])


if __name__ == "__main__":
    main()
