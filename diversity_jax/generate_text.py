"""Write text with a model: one prompt on the command line, or a file of them.

    python -m diversity_jax.generate_text --config configs/generate_text.py --config.model.checkpoint=runs/quickstart \\
        --config.prompt="The "
    python -m diversity_jax.generate_text --config configs/generate_text.py --config.model.checkpoint=DIR \\
        --config.prompts_file=prompts.jsonl --config.output=answers.jsonl --config.temperature=0.8 \\
        --config.top_p=0.95 --config.samples=4

A prompts file holds JSON lines with `prompt` or `messages`, or, if it does not end in .jsonl, a prompt on each line.
"""

import json

from diversity_jax.core import cli
from diversity_jax.core.files import writing
from diversity_jax.evaluation.config import GenerateTextConfig


def main(config: GenerateTextConfig) -> None:
    """Answers every prompt, to the terminal or to a file, which is written atomically."""
    config.model.check_named()
    from diversity_jax.evaluation import run
    from diversity_jax.training.runtime import keep_programs

    keep_programs("user")
    run.refuse_existing(config)
    prompts = run.read_prompts(config.prompts_file) if config.prompts_file else [{"prompt": config.prompt}]
    if config.output is None:
        for answer in run.generate_text(run.open_source(config.model), prompts, config):
            print(answer["text"])
        return
    with writing(config.output, "w") as file:  # before the answers, which a folder that cannot be written would lose
        for answer in run.generate_text(run.open_source(config.model), prompts, config):
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")
    print(config.output)


if __name__ == "__main__":
    cli.run(main, GenerateTextConfig, __doc__)
