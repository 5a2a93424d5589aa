"""The command `diversity-jax` and `python -m diversity_jax`, which runs all commands."""

from collections.abc import Sequence
import difflib
import sys

from diversity_jax.core.commands import COMMANDS


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command that the first argument names; bad input is one line and status 2."""
    import diversity_jax

    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help", "help") and not rest:
        from diversity_jax.core.options import overview

        print(overview())
    elif name in ("-V", "--version"):
        print(f"diversity_jax {diversity_jax.__version__}")
    elif name in ("completion", "--complete"):
        from diversity_jax.core.options import complete

        complete(name, rest)
    elif name.replace("_", "-") in COMMANDS:
        from diversity_jax.core.cli import run_command

        name = name.replace("_", "-")
        run_command(name, COMMANDS[name], rest)
    elif name == "help" and rest[0] in COMMANDS:
        main([rest[0], "--help", *rest[1:]])
    else:
        near = difflib.get_close_matches(name, COMMANDS, 1, 0.5)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(COMMANDS)}"
        print(f"error: {name}: there is no such command; {hint}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
