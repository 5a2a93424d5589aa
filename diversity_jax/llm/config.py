"""How the engine is set, and what it counts."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from diversity_jax.core.errors import InputError
from diversity_jax.llm.budget import NOTHING, Amount
from diversity_jax.llm.cost_forecast import PlannedCalls, StageUsage
from diversity_jax.llm.progress import MODES


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How calls are made and kept.

    Attributes:
      max_in_flight: requests at once, at most; the server's 429s may lower it.
      deadline_seconds: after so long without an answer an attempt is given up; sooner where the server has shown to be
        far quicker, but never before 10 s and twenty times what its slow answers take.
      max_attempts: attempts a call, over failures of the server or the network.
      backoff_seconds: the first pause between attempts is at most this, every next one at most twice the one before.
      stall_seconds: a run whose calls have failed for so long without one answer is stopped.
      ledger: path of the file that keeps paid answers; None keeps them in memory only, so that a second run pays again.
      run: under which name spending is added up in the ledger; runs that share a ledger but not a cap need names of
        their own.
      offline_replay: answer from the ledger alone; a missing answer is an error.
      progress: `panel`, `lines`, `off`, or `auto` (a panel on a terminal, else a line now and then).
    """

    max_in_flight: int = 256
    deadline_seconds: float = 120.0
    max_attempts: int = 6
    backoff_seconds: float = 0.5
    stall_seconds: float = 300.0
    ledger: str | None = None
    run: str = "default"
    offline_replay: bool = False
    progress: str = "auto"

    def __post_init__(self):
        if not 1 <= self.max_in_flight <= 1024:
            raise InputError(f"engine.max_in_flight: {self.max_in_flight} is outside 1 to 1024; 256 suits most servers")
        if self.max_attempts < 1:
            raise InputError(f"engine.max_attempts: {self.max_attempts} makes no call; give at least 1")
        for name in ("deadline_seconds", "stall_seconds", "backoff_seconds"):
            if not getattr(self, name) > 0:
                raise InputError(
                    f"engine.{name}: {getattr(self, name)} is no time to wait; give a number of seconds above 0"
                )
        if self.progress not in MODES:
            raise InputError(f"engine.progress: {self.progress!r} is unknown; choose one of {', '.join(MODES)}")


@dataclass(kw_only=True)
class Stats:
    """What the engine has done so far in this process; `spent` counts only what was newly paid."""

    done: int = 0  # calls with an answer, cached ones included
    cached: int = 0
    failed: int = 0
    attempts: int = 0
    prompt_tokens: int = 0  # of all answers, cached ones included
    completion_tokens: int = 0
    cost_usd: float = 0.0  # of all answers, cached ones included
    spent: Amount = NOTHING
    expected: int | None = None
    planned: Sequence[PlannedCalls] = ()
    seen: dict[str, StageUsage] = field(default_factory=dict)  # answers by stage, cached ones included
