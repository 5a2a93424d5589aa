"""What is known of a server: what it does not take, how far its bills go, which model stands behind it; and whether its
refusals are about single calls or about all of them.
"""

import asyncio
from collections import defaultdict
from collections.abc import Iterable
import logging

from diversity_jax.llm.budget import Overrun
from diversity_jax.llm.providers.outcomes import EVIDENCE, Refused
from diversity_jax.llm.response_cache import ResponseCache

_logger = logging.getLogger(__name__)


class ServerNotes:
    """Notes on one model at one address, kept in the ledger so that they are learnt once.

    Args:
      cache: the ledger.
      name: `provider:model`.
      url: address of the model.
      role: what the model is used as; messages begin with it.

    Attributes:
      without: features that the server does not take.
      overrun: how far its answers have gone beyond what requests allow.
    """

    def __init__(self, cache: ResponseCache, name: str, url: str, role: str):
        self._cache, self._name, self._role, self._address = cache, name, role, f"{name} at {url}"
        self.without = frozenset(self._values(self._address, "without"))
        self.overrun = Overrun(factor=max([1.0, *map(float, self._values(self._address, "overrun"))]))
        self._warned, self._seen = False, set[tuple[str, str]]()

    def _values(self, subject: str, kind: str) -> list[str]:
        return sorted(value for about, of, value in self._cache.notes if (about, of) == (subject, kind))

    def learnt(self, feature: str) -> None:
        """Keeps that the server does not take a feature."""
        self._note(self._address, "without", feature)

    def keep_overrun(self) -> None:
        """Keeps how far answers have gone beyond what requests allow."""
        self._note(self._address, "overrun", f"{self.overrun.factor:.3g}")

    def served_by(self, kind: str, models: Iterable[str]) -> None:
        """Keeps what a server says stands behind the model's name, in answers (`answered by`) or in its list of models
        (`listed as`). A run whose ledger has answers of another model logs that once; a new version of the same model
        (its fingerprint) only the first time that it is seen.
        """
        for model in models:
            if (kind, model) in self._seen:
                continue
            self._seen.add((kind, model))
            self._note(self._name, kind, model)
            before = self._values(self._name, kind)
            others = [was for was in before if was.partition(" ")[0] != model.partition(" ")[0]]
            others = others or [was for was in before if model not in before]
            if others and not self._warned:
                self._warned = True
                what = f"{self._name} is now {kind} {model}; answers in {self._cache.path} are of {others[-1]}"
                advice = "both are used; name another output folder or engine.ledger to ask one model alone"
                _logger.warning("%s: %s: %s", self._role, what, advice)

    def _note(self, subject: str, kind: str, value: str) -> None:
        written = self._cache.run(lambda file: file.note(subject, kind, value))
        written.add_done_callback(asyncio.Future.exception)  # a failing ledger shows at the next call


# What these say of themselves is not outweighed by answers of an earlier process: a key may have been withdrawn since.
_NEEDS_NEW_SUCCESS = ("key", "model", "settings")


class Evidence:
    """What has been seen of calls that were sent.

    Attributes:
      successes: calls answered by the server in this process, usable or not.
    """

    def __init__(self) -> None:
        self.successes = 0
        self._sent = 0
        self._in_flight: dict[int, None] = {}  # numbers of attempts, in the order of sending
        self._suspected_at: dict[str, int] = {}  # attempts sent when enough calls had been refused, by scope
        self._refused: defaultdict[str, set[str]] = defaultdict(set)  # keys of calls, by scope

    def sent(self) -> int:
        """Notes an attempt; returns its number for `ended`."""
        self._sent += 1
        self._in_flight[self._sent] = None
        return self._sent

    def ended(self, number: int) -> None:
        """Notes that an attempt is over, however it went."""
        self._in_flight.pop(number, None)

    def is_about_all(self, refused: Refused, key: str, *, answered_before: bool) -> bool:
        """Notes a refusal of the call under `key`; whether it shows that no call can succeed.

        Args:
          answered_before: whether calls of the run were answered in an earlier process.
        """
        if refused.scope == "account":
            return True
        self._refused[refused.scope].add(key)
        if len(self._refused[refused.scope]) < EVIDENCE[refused.scope]:
            return False
        suspected_at = self._suspected_at.setdefault(refused.scope, self._sent)
        if self.successes or (answered_before and refused.scope not in _NEEDS_NEW_SUCCESS):
            return False
        return next(iter(self._in_flight), suspected_at + 1) > suspected_at

    @property
    def refused(self) -> int:
        """Calls that were refused."""
        return len(set[str]().union(*self._refused.values()))
