"""Registers our models with lm-evaluation-harness under the name `diversity_jax`; importing this is what does it."""

from typing import Any

from lm_eval.api.registry import register_model

from diversity_jax.errors import InputError
from diversity_jax.evaluation.harness import HarnessModel
from diversity_jax.model import MeshConfig
from diversity_jax.model_files import open_model


@register_model("diversity_jax")
class DiversityJax(HarnessModel):
    """A model by the arguments of a command line.

    Args:
      checkpoint: a run's output folder, what `model.convert import` wrote, or a Hugging Face folder.
      step, tokenizer, compute_dtype, max_length: as `open_model`.
      data, fsdp, tensor: the mesh; by default rows over all devices.
      batch_size: rows computed at once; `auto` means the default, since rows are all of few lengths.
      slots: answers generated at once.
      store: a file that keeps finished requests.
    """

    def __init__(
        self,
        checkpoint: str,
        *,
        step: int | None = None,
        tokenizer: str | None = None,
        compute_dtype: str = "float32",
        max_length: int | None = None,
        data: int = -1,
        fsdp: int = 1,
        tensor: int = 1,
        batch_size: int | str = 8,
        slots: int = 16,
        store: str | None = None,
        **ignored: Any,
    ):
        if unknown := set(ignored) - {"device", "max_batch_size"}:
            raise InputError(f"model_args: {', '.join(sorted(unknown))} is not known here; see pydoc diversity_jax.harness_model")
        model = open_model(
            checkpoint,
            step=step,
            tokenizer=tokenizer,
            compute_dtype=compute_dtype,
            max_length=max_length,
            mesh=MeshConfig(data=data, fsdp=fsdp, tensor=tensor),
        )
        super().__init__(model, batch_size=8 if str(batch_size).startswith("auto") else int(batch_size), store=store, slots=slots)
