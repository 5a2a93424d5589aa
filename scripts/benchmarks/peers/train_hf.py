"""The reference of `peers.py`: transformers' Llama in a plain loop with torch's AdamW, in float32 on the CPU.

pip install torch transformers
"""

import math
from pathlib import Path

import torch
import training
import transformers


def groups(model: torch.nn.Module, decayed: str) -> list[dict]:
    """Parameter groups with and without weight decay."""
    has_decay, has_none = [], []
    for name, parameter in model.named_parameters():
        is_norm, is_embedding = parameter.ndim == 1, "embed_tokens" in name or "lm_head" in name
        spared = (is_norm and decayed != "all") or (is_embedding and decayed == "linear")
        (has_none if spared else has_decay).append(parameter)
    return [{"params": has_decay, "weight_decay": 0.1}, {"params": has_none, "weight_decay": 0.0}]


def rate(options, step: int) -> float:
    """Learning rate of the update that follows `step` finished ones, as our optimizer has it."""
    peak = options.learning_rate * min((step + 1) / max(options.warmup, 1), 1)
    if options.schedule == "constant":
        return peak
    progress = min(max((step - options.warmup) / max(options.steps - options.warmup, 1), 0), 1)
    return peak * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress)))


def save(path: Path, state: dict) -> None:
    """Writes a checkpoint whole or not at all."""
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def main() -> None:
    """Trains, from the checkpoint in the output folder where there is one."""
    options = training.options(__doc__)
    record, rows = training.Record(options), training.TrainingRows(options.mixture)
    model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
    optimizer = torch.optim.AdamW(groups(model, options.decayed), lr=options.learning_rate, betas=(0.9, 0.95), eps=1e-8)
    path, begin = options.output / "checkpoint" / "state.pt", 0
    path.parent.mkdir(exist_ok=True)
    if path.exists():
        state = torch.load(path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begin = state["step"]
    timed_save = record.timed(save)
    for step in range(begin, options.steps):
        batch = torch.from_numpy(rows.batch(step, options.batch)).long()
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate(options, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        record.step(step + 1, loss.item())
        if (step + 1) % options.checkpoint_every == 0:
            timed_save(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1})
    model.save_pretrained(options.output / "hf")
    versions = {"framework": f"transformers {transformers.__version__}", "with": f"torch {torch.__version__}"}
    record.finish(checkpoint=path.parent, **versions)


if __name__ == "__main__":
    main()
