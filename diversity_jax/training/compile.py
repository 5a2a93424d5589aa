"""The command `python -m diversity_jax.training.compile`; see `diversity_jax.aot.compile`."""

from diversity_jax.aot.compile import __doc__, command

if __name__ == "__main__":
    command(__doc__)
