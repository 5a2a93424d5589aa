"""Whether a judge's figures can be believed: `fit`, `doubtful` or `unfit`, with the reasons."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from diversity_jax.core.errors import InputError

Fitness = Literal["fit", "doubtful", "unfit"]
FITNESS: tuple[Fitness, ...] = get_args(Fitness)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the examination of a judge came to.

    Attributes:
      judge: `fit`: nothing was found that moves the figures by more than they say; `doubtful`: they could be biased, or
        what would show it could not be measured; `unfit`: they say nothing of the corpus.
      reasons: one line each; of a fit judge only information.
    """

    judge: Fitness
    reasons: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.judge not in FITNESS or not all(isinstance(reason, str) for reason in self.reasons):
            raise InputError(f"verdict: expected judge, one of {', '.join(FITNESS)}, and reasons, a list of texts")

    def to_json(self) -> dict[str, Any]:
        """Both fields by name."""
        return {"judge": self.judge, "reasons": list(self.reasons)}

    @classmethod
    def from_json(cls, value: Any, where: str) -> "Verdict":
        """Reads `to_json`'s value.

        Raises:
          InputError: it is something else; the message begins with `where`.
        """
        try:
            return cls(judge=value["judge"], reasons=tuple(value["reasons"]))
        except (KeyError, TypeError, ValueError):
            raise InputError(f"{where}: expected judge, one of {', '.join(FITNESS)}, and reasons") from None
