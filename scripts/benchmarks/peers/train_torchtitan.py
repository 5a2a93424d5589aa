"""torchtitan's own trainer, for `peers.py`: its Llama 3, its Hugging Face adapter and its checkpoints, in float32.

    pip install torchtitan==0.3.0

It is made for accelerators. On a CPU it starts when PyTorch says that the CPU is the accelerator and answers what is
asked of its memory, and when attention is the plain kernel instead of FlexAttention, which has no backward pass there;
that is all that differs from its own configuration. Several devices are processes that torchrun starts.
"""

from dataclasses import dataclass
import importlib.metadata
import json
import os
from pathlib import Path
import sys
import types

import torch
import training


def cpu_as_accelerator() -> None:
    """Before torchtitan is imported."""
    torch._utils._get_available_device_type = lambda: "cpu"
    torch.cpu.get_device_name = lambda device=None: "cpu"
    torch.cpu.get_device_properties = lambda device=None: types.SimpleNamespace(total_memory=1 << 34)
    torch.cpu.current_device = lambda: 0
    torch.cpu.memory_stats = lambda device=None: {}
    torch.cpu.reset_peak_memory_stats = torch.cpu.empty_cache = lambda: None
    barrier = torch.distributed.barrier
    torch.distributed.barrier = lambda *args, device_ids=None, **kwargs: barrier(*args, **kwargs)  # gloo takes none


def model_config(folder: Path):
    """torchtitan's configuration of the Llama in a Hugging Face folder."""
    from torchtitan.models import llama3
    from torchtitan.models.common import ComplexRoPE, Embedding, Linear, RMSNorm
    from torchtitan.models.common.attention import ScaledDotProductAttention

    config = json.loads((folder / "config.json").read_text())
    rotary = config.get("rope_parameters") or config
    width, vocabulary = config["hidden_size"], config["vocab_size"]
    length, theta = config["max_position_embeddings"], rotary["rope_theta"]
    layers = llama3._build_llama3_layers(
        n_layers=config["num_hidden_layers"],
        dim=width,
        n_heads=config["num_attention_heads"],
        n_kv_heads=config["num_key_value_heads"],
        hidden_dim=config["intermediate_size"],
        rope=ComplexRoPE.Config(dim=config["head_dim"], max_seq_len=length, theta=theta, scaling="none"),
        fuse_qkv=False,
        attn_backend="varlen",
    )
    for layer in layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    norm = RMSNorm.Config(normalized_shape=width, eps=config["rms_norm_eps"], param_init=llama3._NORM_INIT)
    return llama3.Llama3Model.Config(
        dim=width,
        vocab_size=vocabulary,
        enable_weight_tying=config["tie_word_embeddings"],
        tok_embeddings=Embedding.Config(
            num_embeddings=vocabulary, embedding_dim=width, param_init=llama3._EMBEDDING_SKIP_INIT
        ),
        norm=norm,
        lm_head=Linear.Config(in_features=width, out_features=vocabulary, param_init=llama3._output_linear_init(width)),
        layers=layers,
    )


def loader_config(options, rows):
    """Configuration of a loader that divides every batch among the ranks and saves its position in checkpoints."""
    from torchtitan.components.dataloader import BaseDataLoader

    class RowLoader(BaseDataLoader):
        """Rows in their order."""

        @dataclass(kw_only=True, slots=True)
        class Config(BaseDataLoader.Config):
            """Has no fields of its own."""

        def __init__(self, config, *, dp_world_size, dp_rank, local_batch_size, **others):
            self.done, self.part = 0, slice(dp_rank * local_batch_size, (dp_rank + 1) * local_batch_size)

        def __iter__(self):
            while True:
                batch = torch.from_numpy(rows.batch(self.done, options.batch)[self.part]).long()
                self.done += 1
                yield {"input": batch[:, :-1].contiguous()}, batch[:, 1:].contiguous()

        def state_dict(self):
            return {"done": self.done}

        def load_state_dict(self, state):
            self.done = state["done"]

    return RowLoader.Config()


def trainer_config(options, rows):
    """torchtitan's configuration of this run."""
    from torchtitan.components.checkpoint import CheckpointManager
    from torchtitan.components.loss import CrossEntropyLoss
    from torchtitan.components.metrics import MetricsProcessor
    from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer
    from torchtitan.components.optimizer.optimizer import ParamGroupConfig
    from torchtitan.config import TrainingConfig
    from torchtitan.models import llama3
    from torchtitan.protocols.model_spec import ModelSpec
    from torchtitan.trainer import Trainer

    adam = {"lr": options.learning_rate, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    spared = {"all": [], "matrices": [r".*norm.*"], "linear": [r".*norm.*", r".*(tok_embeddings|lm_head).*"]}

    def group(pattern, **changes):
        return ParamGroupConfig(pattern=pattern, optimizer_name="AdamW", optimizer_kwargs=adam | changes)

    groups = [group(pattern, weight_decay=0.0) for pattern in spared[options.decayed]]
    is_constant = options.schedule == "constant"
    return Trainer.Config(
        model_spec=ModelSpec(
            name="llama3",
            flavor="peers",
            model=model_config(options.model),
            parallelize_fn=llama3.parallelize_llama,
            pipelining_fn=None,
            post_optimizer_build_fn=None,
            state_dict_adapter=llama3.Llama3StateDictAdapter,
        ),
        hf_assets_path=str(options.model),
        dump_folder=str(options.output / "titan"),
        loss=CrossEntropyLoss.Config(),
        metrics=MetricsProcessor.Config(log_freq=1),
        dataloader=loader_config(options, rows),
        optimizer=OptimizersContainer.Config(param_groups=[*groups, group(r".*")], implementation="for-loop"),
        lr_scheduler=LRSchedulersContainer.Config(
            warmup_steps=options.warmup, decay_type="cosine", min_lr_factor=1.0 if is_constant else 0.1
        ),
        training=TrainingConfig(
            local_batch_size=options.batch // options.devices,
            seq_len=rows.length,
            steps=options.steps,
            mixed_precision_param="float32",
            disable_cuda_graphs=True,
        ),
        checkpoint=CheckpointManager.Config(
            enable=True,
            interval=options.checkpoint_every,
            initial_load_path=str(options.model),
            initial_load_in_hf=True,
            last_save_in_hf=True,
        ),
        activation_checkpoint=None,
    )


def main() -> None:
    """Trains, from the last checkpoint in the output folder where there is one."""
    options = training.options(__doc__)
    if options.devices > 1 and "RANK" not in os.environ:
        words = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={options.devices}", *sys.argv]
        os.execv(sys.executable, [sys.executable, *words])
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_PORT": 29511}.items():
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    is_first = os.environ["RANK"] == "0"
    record, rows = training.Record(options) if is_first else None, training.TrainingRows(options.mixture)
    cpu_as_accelerator()
    from torchtitan.components import metrics
    from torchtitan.components.checkpoint import CheckpointManager
    from torchtitan.tools.logging import init_logger

    log = metrics.MetricsProcessor.log

    def log_step(self, step, global_avg_loss, *args, **kwargs):
        log(self, step, global_avg_loss, *args, **kwargs)
        if record:
            record.step(step, global_avg_loss)

    metrics.MetricsProcessor.log = log_step
    if record:
        CheckpointManager.dcp_save = record.timed(CheckpointManager.dcp_save)
    init_logger()
    trainer = trainer_config(options, rows).build()
    trainer.train()
    trainer.close()
    if record:
        saved = options.output / "titan" / "checkpoint"
        (options.output / "hf").symlink_to((saved / f"step-{options.steps}").absolute())
        if not (options.output / "hf" / "config.json").exists():
            (options.output / "hf" / "config.json").write_bytes((options.model / "config.json").read_bytes())
        before = saved / f"step-{(options.steps - 1) // options.checkpoint_every * options.checkpoint_every}"
        version = importlib.metadata.version("torchtitan")
        details = {"framework": f"torchtitan {version}", "with": f"torch {torch.__version__}"}
        record.finish(checkpoint=before if before.exists() else None, **details)


if __name__ == "__main__":
    main()
