"""A model of 7,000 parameters, trained for 104 steps on the mixture in `mixture`."""

from dataclasses import replace

from configs import quickstart


def get_config():
    base = quickstart.get_config()
    shape = {"hidden_size": 16, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    train = replace(
        base.train,
        steps=104,
        batch_size=8,
        log_every=8,
        eval_every=52,
        eval_batches=1,
        sample_every=52,
        sample_prompts=("The ", ""),
        sample_tokens=16,
        sample_temperature=1.0,
        checkpoint_every=8,
        keep_checkpoints=2,
        tensorboard=False,
    )
    return replace(
        base,
        output_dir="run",
        mixture=None,
        prepared="mixture",
        model=replace(base.model, vocab_size=264, max_length=128, **shape),
        optimizer=replace(base.optimizer, learning_rate=3e-2, warmup_steps=4),
        train=train,
        register=False,
    )
