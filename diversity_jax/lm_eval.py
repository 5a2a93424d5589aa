"""lm-evaluation-harness's own command with our models known to it as `diversity_jax`.

    python -m diversity_jax.lm_eval run --model diversity_jax --model_args checkpoint=runs/quickstart --tasks arc_easy,hellaswag

Everything after `python -m diversity_jax.lm_eval` is what `lm_eval` takes. In a program of your own, `import diversity_jax.lm_eval` is
enough: `lm_eval.simple_evaluate(model="diversity_jax", model_args={"checkpoint": ...}, ...)` then works.
"""

import sys

from diversity_jax import harness_model  # noqa: F401 - registers the model
from diversity_jax.errors import InputError


def main() -> None:
    """The harness's command line; bad input is one line and status 2."""
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
