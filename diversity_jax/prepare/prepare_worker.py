"""A worker process of a preparation; started by `diversity_jax.prepare.workers`, not by people."""

import sys

from diversity_jax.prepare.workers import serve

if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]))
