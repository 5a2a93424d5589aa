"""What the ledger knows of a server: what it does not take, how far its bills go, and which model stands behind it."""

import asyncio
from collections.abc import Iterable
import logging

from diversity_jax.llm.budget import Overrun
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
