"""Runs lm-evaluation-harness's command with models of this project registered as `diversity_jax`.

    diversity-jax-lm-eval --model diversity_jax --model_args checkpoint=runs/quickstart --tasks arc_easy,hellaswag

`python -m diversity_jax.lm_eval` is the same where the package is not installed; all arguments are the harness's. In a
program, `import diversity_jax.lm_eval` is enough for
`lm_eval.simple_evaluate(model="diversity_jax", model_args={"checkpoint": ...}, ...)`.
"""

import importlib.util
import sys

from diversity_jax.core.errors import InputError

if importlib.util.find_spec("lm_eval"):
    from lm_eval.api.registry import model_registry

    if "diversity_jax" not in model_registry:  # that module registers it too
        model_registry.register("diversity_jax", target="diversity_jax.evaluation.lm_eval_model:DiversityJax")


def main() -> None:
    """The harness's command line; bad input is one line and status 2."""
    try:
        try:
            from lm_eval.__main__ import cli_evaluate
        except ImportError as error:
            raise InputError(
                f"lm-evaluation-harness is not installed ({error}); pip install 'diversity_jax[eval]'"
            ) from None
        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
