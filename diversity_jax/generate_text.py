"""Write text with a model: one prompt on the command line, or a file of them.

    python -m diversity_jax.generate_text --config configs/generate_text.py --config.model.checkpoint=runs/quickstart --config.prompt="The "
    python -m diversity_jax.generate_text --config configs/generate_text.py --config.model.checkpoint=DIR \\
        --config.prompts_file=prompts.jsonl --config.output=answers.jsonl --config.temperature=0.8 --config.top_p=0.95 --config.samples=4

A prompts file holds JSON lines with `prompt` or `messages`, or, under another ending than .jsonl, one prompt a line.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import json
from typing import Any

from diversity_jax.core import cli
from diversity_jax.core.errors import InputError
from diversity_jax.core.files import open_file, writing
from diversity_jax.evaluation.config import GenerateTextConfig


def main(config: GenerateTextConfig) -> None:
    """Answers every prompt; to a file in one piece, or to the terminal."""
    config.model.check_named()
    asked = _read(config.prompts_file) if config.prompts_file else [{"prompt": config.prompt}]
    from diversity_jax.evaluation.load_model import open_model

    source = {field.name: getattr(config.model, field.name) for field in dataclasses.fields(config.model)}
    model = open_model(source.pop("checkpoint"), **source)
    answers = generate_text(model, asked, config)
    if config.output is None:
        for answer in answers:
            print(answer["text"])
        return
    with writing(config.output, "w") as file:
        for answer in answers:
            file.write(json.dumps(answer, ensure_ascii=False) + "\n")
    print(config.output)


def generate_text(model: Any, asked: Sequence[Mapping[str, Any]], config: GenerateTextConfig) -> list[dict[str, Any]]:
    """Answers to prompts, `samples` each, in order: what was asked, and text, finish_reason and tokens of the answer.

    Args:
      model: from `diversity_jax.evaluation.load_model.open_model`.
      asked: each with `prompt` (text) or `messages` (a conversation).

    Raises:
      InputError: a prompt that does not fit, or a chat template that fails.
    """
    from diversity_jax.evaluation.generate import Generator
    from diversity_jax.evaluation.sampling import Sampling

    prompts, settings = [], []
    for one in asked:
        ids = _ids(model, one, config) or [model.tokenizer.prefix_id]
        for sample in range(config.samples):
            prompts.append(ids)
            settings.append(
                Sampling(
                    max_tokens=config.max_tokens,
                    temperature=config.temperature,
                    top_k=config.top_k,
                    top_p=config.top_p,
                    seed=config.seed + sample,
                    stop=config.stop,
                )
            )
    answers = Generator(model, slots=min(config.slots, len(prompts))).generate(prompts, settings)
    repeated = [one for one in asked for _ in range(config.samples)]
    return [
        {**one, "text": answer.text, "finish_reason": answer.finish_reason, "tokens": len(answer.tokens)}
        for one, answer in zip(repeated, answers, strict=True)
    ]


def _ids(model: Any, one: Mapping[str, Any], config: GenerateTextConfig) -> list[int]:
    if "messages" not in one and not config.chat:
        return model.tokenizer.encode(one["prompt"])
    messages = list(one.get("messages") or [{"role": "user", "content": one["prompt"]}])
    if config.system_prompt:
        messages.insert(0, {"role": "system", "content": config.system_prompt})
    return model.encode_chat(messages)[1]


def _read(path: str) -> list[dict[str, Any]]:
    with open_file(path, "r") as file:
        lines = [(number, line.rstrip("\n")) for number, line in enumerate(file, 1) if line.strip()]
    if not lines:
        raise InputError(f"{path}: holds no prompt")
    if not path.endswith(".jsonl"):
        return [{"prompt": line} for _, line in lines]
    return [_entry(path, number, line) for number, line in lines]


def _entry(path: str, number: int, line: str) -> dict[str, Any]:
    try:
        one = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}:{number}: is not JSON ({error.msg})") from None
    if not isinstance(one, dict) or not (isinstance(one.get("prompt"), str) or isinstance(one.get("messages"), list)):
        raise InputError(f'{path}:{number}: expected an object with "prompt" (text) or "messages" (a list)')
    return one


if __name__ == "__main__":
    cli.run(main, GenerateTextConfig, __doc__)
