"""Low-rank adapters to the model in `run`, trained for four steps on the same mixture."""

from dataclasses import replace

from configs import quickstart


def get_config():
    base = quickstart.get_config()
    train = replace(
        base.train,
        steps=4,
        batch_size=8,
        log_every=1,
        eval_every=0,
        eval_batches=1,
        sample_every=0,
        sample_prompts=(),
        checkpoint_every=2,
        tensorboard=False,
        init_from="run",
        init_step=104,
        lora=replace(base.train.lora, rank=2),
    )
    optimizer = replace(base.optimizer, learning_rate=1e-2, warmup_steps=1)
    return replace(
        base,
        output_dir="lora",
        mixture=None,
        prepared="mixture",
        model=None,
        optimizer=optimizer,
        train=train,
        register=False,
    )
