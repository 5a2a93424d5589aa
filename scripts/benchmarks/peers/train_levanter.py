"""Levanter's own trainer, for `peers.py`: its Llama, its Hugging Face converter, Adam and checkpoints, in float32.

    pip install marin-levanter

Rows of L + 1 tokens are examples of L + 1 positions, the last without a target: the same L targets as elsewhere. Weight
decay leaves out norms and embeddings unless its modules are named.
"""

import dataclasses
import datetime
import importlib.metadata

import training

# What weight decay applies to, as Levanter matches names; None: its own choice.
DECAYED = {"linear": None, "matrices": ["embedding", "proj"], "all": r".*"}


def settings(options):
    """Levanter's configurations of the trainer and of the optimizer."""
    import jmp
    from levanter.checkpoint import CheckpointerConfig
    from levanter.optim.config import AdamConfig
    from levanter.tracker import NoopConfig
    from levanter.trainer import TrainerConfig

    optimizer = AdamConfig(
        learning_rate=options.learning_rate,
        weight_decay=0.1,
        warmup=options.warmup,
        lr_schedule=options.schedule,
        min_lr_ratio=0.1,
        weight_decay_modules=DECAYED[options.decayed],
    )
    trainer = TrainerConfig(
        id="run",
        mp=jmp.get_policy("f32"),
        tracker=NoopConfig(),
        log_dir=options.output / "logs",
        log_jaxprs=False,
        log_xla_hlo=False,
        train_batch_size=options.batch,
        num_train_steps=options.steps,
        require_accelerator=False,
        checkpointer=CheckpointerConfig(
            base_path=str(options.output / "checkpoints"),
            save_interval=datetime.timedelta(hours=1),
            keep=[{"every": options.checkpoint_every}],
        ),
    )
    return trainer, optimizer


def main() -> None:
    """Trains, from the last checkpoint in the output folder where there is one."""
    options = training.options(__doc__)
    record, rows = training.Record(options), training.TrainingRows(options.mixture)
    import haliax as hax
    import jax
    import levanter
    from levanter import checkpoint
    from levanter.data.dataset import ListAsyncDataset
    from levanter.models.llama import LlamaConfig
    from levanter.models.lm_model import LmExample
    from levanter.trainer import Trainer
    import numpy as np

    checkpoint.Checkpointer.save_checkpoint = record.timed(checkpoint.Checkpointer.save_checkpoint)
    converter = LlamaConfig().hf_checkpoint_converter(str(options.model))
    model_config = dataclasses.replace(
        converter.config_from_hf_config(converter.default_hf_config),
        max_seq_len=rows.length + 1,
        gradient_checkpointing=False,
        scan_layers=True,
    )
    config, optimizer = settings(options)
    config.initialize()
    position = hax.Axis("position", rows.length + 1)
    needed = min(len(rows), options.steps * options.batch)
    examples = [LmExample.causal(hax.named(np.asarray(rows[row]), position)) for row in range(needed)]

    def loss_function(model, example, *, key=None):
        return model.compute_next_token_loss(example, key=key)

    with Trainer(config, optimizer.build(options.steps), loss_function) as trainer:
        model = None
        if not trainer.checkpoint_load_plan()[1]:
            model = converter.load_pretrained(
                model_config.model_type, config=model_config, axis_mapping=trainer.parameter_axis_mapping
            )
        vocabulary = hax.Axis("vocab", converter.default_hf_config.vocab_size)
        build = None if model is not None else lambda: model_config.build(vocabulary, key=jax.random.PRNGKey(0))
        state = trainer.initial_state(jax.random.PRNGKey(0), model=model, model_init=build)
        trainer.add_hook(lambda info: record.step(int(info.step) + 1, info.loss), every=1)
        loader = trainer.data_loader(ListAsyncDataset(examples)).iter_from_step(int(state.step))
        info = trainer.train(state, loader)
        largest = int(options.max_shard_gigabytes * 1e9)
        folder = str(options.output / "hf")
        converter.save_pretrained(info.state.model, folder, save_tokenizer=False, max_shard_size=largest)
    version = importlib.metadata.version("marin-levanter")
    saved = max((options.output / "checkpoints" / "run").glob("step-*"), key=lambda path: int(path.name[5:]))
    record.finish(checkpoint=saved, framework=f"levanter {version}", **{"with": f"jax {jax.__version__}"})
    levanter.tracker.current_tracker().finish()


if __name__ == "__main__":
    main()
