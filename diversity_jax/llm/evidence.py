"""Whether refusals are about single calls or about all of them.

A content filter that refuses at once has refused many calls before the first answer comes, and a handful of documents
that are always turned away is all that a second run still asks for. So refusals count for all calls only where nothing
has succeeded, where enough of them say the same, and where every call is over that was in flight by then.
"""

from collections import defaultdict

from diversity_jax.llm.providers.outcomes import EVIDENCE, Refused

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
