"""Our own training, for `peers.py`: the same mixture, initialised from the same Hugging Face folder."""

from pathlib import Path
import sys

import training

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))


def record_through_the_loop(record: training.Record) -> None:
    """Makes the training loop report its losses and the time of its checkpoints to `record`."""
    from diversity_jax.training import bucket_checkpoints, loop
    from diversity_jax.training.checkpoint import Checkpoints

    class Writer(loop.MetricWriter):
        """Passes the losses of a step on to the record."""

        def write(self, step, figures, **more):
            super().write(step, figures, **more)
            if "loss" in figures:
                record.step(step, figures["loss"])

    class TimedCheckpoints(Checkpoints):
        """Waits for each checkpoint, so that its time is known."""

        def save(self, *args, **kwargs):
            def save_and_wait():
                super(TimedCheckpoints, self).save(*args, **kwargs)
                self.wait()

            record.timed(save_and_wait)()

    loop.MetricWriter = Writer
    bucket_checkpoints.Checkpoints = TimedCheckpoints  # where `open_checkpoints` looks it up


def main() -> None:
    """Trains, from the last checkpoint in the output folder where there is one, and exports."""
    options = training.options(__doc__)
    record = training.Record(options)
    from diversity_jax.training import runtime

    runtime.keep_freed_memory()  # as the train command does for models of this size
    import jax

    from diversity_jax.model import MeshConfig, convert
    from diversity_jax.training.config import OptimizerConfig, TrainConfig
    from diversity_jax.training.run import Config, run

    record_through_the_loop(record)
    folder = options.output / "run"
    settings = {"learning_rate": options.learning_rate, "warmup_steps": options.warmup}
    model = convert.read_config(options.model)
    run(
        Config(
            output_dir=str(folder),
            prepared=str(options.mixture),
            model=convert.dataclasses.replace(model, scan_layers=False, compute_dtype="float32"),
            optimizer=OptimizerConfig(**settings, schedule=options.schedule, final_ratio=0.1),
            train=TrainConfig(
                steps=options.steps,
                batch_size=options.batch,
                init_from=str(options.model),
                log_every=1,
                eval_batches=0,
                checkpoint_every=options.checkpoint_every,
                tensorboard=False,
                compilation_cache=None,
                allow_changed=("mesh",),  # another number of devices is refused unless it is allowed by name
            ),
            mesh=MeshConfig(fsdp=options.devices),
        )
    )
    convert.main(["export", str(folder), str(options.output / "hf"), "--tokenizer=none"])
    checkpoint = folder / "checkpoints" / str(options.steps)
    versions = {"framework": "diversity_jax", "with": f"jax {jax.__version__}"}
    record.finish(checkpoint=checkpoint, **versions)


if __name__ == "__main__":
    main()
