"""A call on its way: its attempts, and what they may have cost."""

from dataclasses import dataclass, field
import functools
import math

from diversity_jax.llm.budget import NOTHING, Amount, Price
from diversity_jax.llm.providers.base import Transient
from diversity_jax.llm.response_cache_file import Entry, Failure
from diversity_jax.llm.types import Request

_ANSWERS_THAT_SHOW = 5


@dataclass(kw_only=True)
class Call:
    """One question until it is answered or given up.

    Attributes:
      reserve: the most an attempt can use up.
      claimed: whether an attempt holds a place under the cap.
      unrecorded: used up, but not yet in the ledger.
      lost: counted for each attempt that came to nothing though it may have to be paid for.
      failures, limits: attempts that failed, and that met the server's limit.
    """

    key: str
    request: Request
    reserve: Amount
    claimed: bool = False
    unrecorded: Amount = NOTHING
    lost: list[Amount] = field(default_factory=list)
    failures: int = 0
    limits: int = 0

    def note(self, error: Transient, *, counts: bool) -> None:
        """Takes down a failed attempt; it counts against the call unless nobody gets an answer."""
        # Nothing was sent, or nothing was answered, or, to be safe, all was used up that could be.
        self.unrecorded = self.reserve if error.billed else Amount(calls=int(error.kind != "unreachable"))
        self.limits += error.kind == "rate_limited"
        self.failures += counts and error.kind not in ("rate_limited", "adapted")

    def account(self, outcome: Entry | Failure | None, price: Price, costs: "Costs") -> tuple[Amount, bool, Amount]:
        """Ends an attempt: what it used up, whether that is only the most it can be, and what is no longer counted as
        lost.

        A lost attempt counts with the most that its stage's answers let expect. Once the call is answered the attempts
        lost before count with its prompt, which they share, and twice its answer, to be safe.
        """
        spent, self.unrecorded, self.claimed = self.unrecorded, NOTHING, False
        if spent is self.reserve:
            self.lost.append(costs.most(self, price))
            return self.lost[-1], True, NOTHING
        if not isinstance(outcome, Entry):
            return spent, False, NOTHING
        costs.learn(self, outcome)
        regained = functools.reduce(Amount.plus, self.lost, NOTHING)
        again = self.amount(outcome.prompt_tokens, 2 * outcome.completion_tokens, price).times(len(self.lost))
        self.lost.clear()
        return spent.plus(again), False, regained

    def recount(self, costs: "Costs", price: Price) -> Amount:
        """Counts its lost attempts by what is known now; returns by how much less that is."""
        before, most = self.lost, costs.most(self, price)
        self.lost = [min(one, most) for one in before]
        return functools.reduce(Amount.plus, before, NOTHING).minus(functools.reduce(Amount.plus, self.lost, NOTHING))

    def amount(self, prompt_tokens: int, completion_tokens: int, price: Price) -> Amount:
        """So many tokens, the answer's at most as many as it may have."""
        completion_tokens = min(completion_tokens, self.request.max_output_tokens)
        return Amount(price.cost(prompt_tokens, completion_tokens), prompt_tokens + completion_tokens, 1)

    @property
    def most_prompt_tokens(self) -> int:
        """Upper bound of the tokens of its prompt."""
        return self.reserve.tokens - self.request.max_output_tokens


@dataclass(kw_only=True)
class Costs:
    """What the answers of one stage have shown: how many there were, the largest share that a prompt had of its upper
    bound, and the longest answer in tokens.
    """

    answers: int = 0
    share: float = 0.0
    longest: int = 0

    def learn(self, call: Call, entry: Entry) -> None:
        """Takes down an answer."""
        self.answers += 1
        self.share = max(self.share, entry.prompt_tokens / call.most_prompt_tokens)
        self.longest = max(self.longest, entry.completion_tokens)

    def most(self, call: Call, price: Price) -> Amount:
        """The most that a lost attempt is taken to have used up: twice the longest answer seen; before a few were, all
        that it can be.
        """
        if self.answers < _ANSWERS_THAT_SHOW:
            return call.reserve
        return call.amount(
            min(call.most_prompt_tokens, math.ceil(self.share * call.most_prompt_tokens)), 2 * self.longest, price
        )
