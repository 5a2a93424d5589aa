"""The model in `run` on the made-up items in `benchmarks` and on its held-out rows."""

from dataclasses import replace

from configs import evaluate_paper


def get_config():
    base = evaluate_paper.get_config()
    model = replace(base.model, checkpoint="run", step=104)
    return replace(
        base, output_dir="evaluation", model=model, data_dir="benchmarks", held_out=True, bootstrap_samples=100
    )
