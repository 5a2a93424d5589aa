"""litgpt's own pretraining, for `peers.py`: `litgpt.pretrain.setup`, its converters and its checkpoints, in float32.

    pip install litgpt==0.5.13 requests   # which it needs for checkpoints and does not name

Weight decay applies to every parameter; its schedule is a cosine down to `min_lr`, which at the peak is a constant.
"""

import importlib.metadata
import json
from pathlib import Path
import shutil
import sys

import litgpt.config
import litgpt.data
import litgpt.pretrain
from litgpt.scripts.convert_hf_checkpoint import convert_hf_checkpoint
from litgpt.scripts.convert_lit_checkpoint import convert_lit_checkpoint
import torch
import training

NAME = "peers-llama"


def register(model: Path) -> None:
    """Makes the model known by name: litgpt's converter takes sizes from its own table, not from `config.json`."""
    config = json.loads((model / "config.json").read_text())
    rotary = config.get("rope_parameters") or config
    litgpt.config.name_to_config[NAME] = {
        "name": NAME,
        "block_size": config["max_position_embeddings"],
        "vocab_size": config["vocab_size"],
        "padded_vocab_size": config["vocab_size"],
        "n_layer": config["num_hidden_layers"],
        "n_head": config["num_attention_heads"],
        "n_query_groups": config["num_key_value_heads"],
        "n_embd": config["hidden_size"],
        "head_size": config["head_dim"],
        "intermediate_size": config["intermediate_size"],
        "rotary_percentage": 1.0,
        "rope_base": rotary["rope_theta"],
        "parallel_residual": False,
        "bias": False,
        "norm_class_name": "RMSNorm",
        "norm_eps": config["rms_norm_eps"],
        "mlp_class_name": "LLaMAMLP",
    }


class RowLoader(torch.utils.data.DataLoader):
    """Rows in order; its state is the number of batches given, which Fabric saves with a checkpoint."""

    def __init__(self, rows, batch):
        super().__init__(torch.utils.data.TensorDataset(torch.zeros(len(rows))), batch_size=batch)
        self.rows, self.size, self.done = rows, batch, 0

    def __iter__(self):
        while True:
            self.done += 1
            yield torch.from_numpy(self.rows.batch(self.done - 1, self.size))

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]


class PreparedRows(litgpt.data.DataModule):
    """The module that litgpt asks for its loaders."""

    def __init__(self, rows, batch):
        super().__init__()
        self.rows, self.batch = rows, batch

    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None):
        pass

    def train_dataloader(self):
        return RowLoader(self.rows, self.batch)

    val_dataloader = train_dataloader


def main() -> None:
    """Trains, from the last checkpoint in the output folder where there is one."""
    options = training.options(__doc__)
    record, rows = training.Record(options), training.TrainingRows(options.mixture)
    register(options.model)
    start = options.output / "start" / NAME
    if not start.exists():
        shutil.copytree(options.model, start)
        convert_hf_checkpoint(start, model_name=NAME)
    tied = json.loads((options.model / "config.json").read_text())["tie_word_embeddings"]
    out = options.output / "run"
    resume = bool(list(out.glob("step-*/lit_model.pth")))

    original = litgpt.pretrain.L.Fabric.log_dict

    def log_dict(self, metrics, step=None):
        if "loss" in metrics:
            record.step(metrics["step"], metrics["loss"])
        original(self, metrics, step=step)

    litgpt.pretrain.L.Fabric.log_dict = log_dict
    litgpt.pretrain.L.Fabric.save = record.timed(litgpt.pretrain.L.Fabric.save)
    settings = {"lr": options.learning_rate, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    sys.argv[1:] = [NAME]  # with each checkpoint it stores a command line, which it parses from here
    litgpt.pretrain.setup(
        NAME,
        out_dir=out,
        precision="32-true",
        initial_checkpoint_dir=None if resume else start,
        resume=resume,
        data=PreparedRows(rows, options.batch // options.devices),
        train=litgpt.pretrain.TrainArgs(
            save_interval=options.checkpoint_every,
            global_batch_size=options.batch,
            micro_batch_size=options.batch // options.devices,
            max_tokens=options.steps * options.batch * rows.length,
            max_seq_length=rows.length,
            max_norm=1.0,
            min_lr=options.learning_rate * (1 if options.schedule == "constant" else 0.1),
            lr_warmup_steps=options.warmup,
            tie_embeddings=tied,
        ),
        eval=litgpt.pretrain.EvalArgs(interval=10**6, max_iters=1, final_validation=False),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": settings},
        devices=options.devices,
        logger_name="csv",
    )
    convert_lit_checkpoint(out / "final", options.output / "hf")
    for file in options.model.glob("*.json"):
        shutil.copy(file, options.output / "hf")
    (options.output / "hf" / "model.pth").rename(options.output / "hf" / "pytorch_model.bin")
    versions = {"framework": f"litgpt {importlib.metadata.version('litgpt')}", "with": f"torch {torch.__version__}"}
    record.finish(checkpoint=out / "final", **versions)


if __name__ == "__main__":
    main()
