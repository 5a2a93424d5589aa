"""Judges by name in a configuration; an entry of `JUDGES` adds one.

`embedding:EMBEDDER` groups by the vectors of an embedder (see `embedders`); any other name that is not in `JUDGES` is a
language model, `PROVIDER:MODEL`. What differs between judges is a field of `JudgeKind`.
"""

from collections.abc import Callable
import dataclasses
from dataclasses import dataclass
import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.types import OFFLINE_LABEL, Judge
from diversity_jax.core.errors import InputError
from diversity_jax.llm import BudgetConfig, EndpointConfig, EngineConfig, parse_model, price_of
from diversity_jax.llm.providers.registry import PROVIDERS

if TYPE_CHECKING:
    from diversity_jax.cluster_agent.embedding_judge import EmbeddingJudge
    from diversity_jax.cluster_agent.llm import LlmJudge


class JudgeSettings(Protocol):
    """The fields of a configuration that a judge is opened by."""

    @property
    def judge(self) -> str: ...
    @property
    def judge_base_url(self) -> str | None: ...
    @property
    def judge_endpoint(self) -> EndpointConfig: ...
    @property
    def agent(self) -> AgentConfig: ...
    @property
    def engine(self) -> EngineConfig: ...
    @property
    def budget(self) -> BudgetConfig: ...


@dataclass(frozen=True, kw_only=True)
class JudgeKind:
    """A kind of judge. Its functions import what they need, so that configurations load quickly.

    Attributes:
      open: makes the judge from settings and the path of the response cache; None where nothing is judged.
      label: `Judge.label`; None where that is the model's name.
      is_llm: whether a language model is asked, over the network and at a price.
      note: remark on pages with figures of this judge.
      check: raises `InputError` where such a judge cannot be opened, before any text is read; for a missing API key
        only where its second argument, whether the judge will be asked, is True.
    """

    open: Callable[[JudgeSettings, Path], Judge] | None
    label: str | None = None
    is_llm: bool = False
    note: str = ""
    check: Callable[[JudgeSettings, bool], None] = lambda settings, asked: None


def _open_llm(settings: JudgeSettings, cache: Path) -> "LlmJudge":
    from diversity_jax.cluster_agent.llm import LlmJudge
    from diversity_jax.llm import Engine

    path = settings.engine.ledger or str(cache)
    engine = dataclasses.replace(settings.engine, ledger=path)
    address, endpoint = settings.judge_base_url, settings.judge_endpoint
    return LlmJudge(Engine(settings.judge, base_url=address, endpoint=endpoint, config=engine, budget=settings.budget))


def _check_llm(settings: JudgeSettings, asked: bool) -> None:
    from diversity_jax.llm.providers.endpoint import Endpoint

    _refuse_unknown(settings.judge)
    price_of(*parse_model(settings.judge), settings.judge_base_url, settings.budget)
    if not settings.engine.offline_replay:
        Endpoint(settings.judge, settings.judge_base_url, "judge", settings.judge_endpoint, key_needed=asked)


def _refuse_unknown(judge: str) -> None:
    """InputError for a name that is neither a judge's nor of a provider; suggests the nearest known one."""
    provider, colon, model = judge.partition(":")
    if provider in PROVIDERS and model:
        return
    known = known_judges()
    near = [f"{provider}:"] if provider in PROVIDERS else difflib.get_close_matches(provider + colon, known, 1, 0.5)
    hint = "".join(f"; did you mean {name}{model or 'MODEL' if name[-1] == ':' else ''}?" for name in near)
    written = ", ".join(f"{name}MODEL" if name[-1] == ":" else name for name in known)
    raise InputError(f"judge: {judge!r} is unknown{hint or f'; write one of {written}'}")


def _check_embedding(settings: JudgeSettings, asked: bool) -> None:
    from diversity_jax.embedders import check_embedder

    budget, judge = settings.budget, settings.judge
    check_embedder(judge.removeprefix(_EMBEDDING), base_url=settings.judge_base_url)
    if not is_paid_embedding(judge) or settings.judge_base_url or budget.unlimited:
        return
    if budget.max_dollars is None:
        problem = f"is not set, and {judge} charges for every text that it reads"
        raise InputError(f"budget.max_dollars: {problem}; give a cap, or budget.unlimited=True")
    if budget.input_price is None:
        problem = "is not set, and without it no cap holds for embeddings"
        raise InputError(
            f"budget.input_price: {problem}; give what {judge} charges for a million tokens, and output_price=0"
        )


def _open_offline(settings: JudgeSettings, cache: Path) -> "EmbeddingJudge":
    from diversity_jax.cluster_agent.embedding_judge import EmbeddingJudge

    return EmbeddingJudge()


def _open_embedding(settings: JudgeSettings, cache: Path) -> "EmbeddingJudge":
    from diversity_jax.cluster_agent.embedding_judge import EmbeddingJudge
    from diversity_jax.cluster_agent.ruler import embedder_ruler
    from diversity_jax.embedders import open_embedder

    budget = settings.budget
    embedder = open_embedder(
        settings.judge.removeprefix(_EMBEDDING),
        base_url=settings.judge_base_url,
        cache=cache.parent / "embeddings",
        dollars_per_million_tokens=budget.input_price or 0.0,
        max_dollars=budget.max_dollars,
    )
    return EmbeddingJudge(embedder_ruler(embedder), label=settings.judge)


_NOTE = "This judge groups texts by vectors of their words: a baseline, no stand-in for a language model's judgement."
_EMBEDDING = "embedding:"
JUDGES: dict[str, JudgeKind] = {
    "offline": JudgeKind(open=_open_offline, label=OFFLINE_LABEL, note=_NOTE),
    "none": JudgeKind(open=None),
}
_EMBEDDER = JudgeKind(open=_open_embedding, note=_NOTE, check=_check_embedding)
_LLM = JudgeKind(open=_open_llm, is_llm=True, check=_check_llm)


def known_judges() -> list[str]:
    """Values of `judge`; those that end in a colon are followed by a model or an embedder."""
    return [*JUDGES, _EMBEDDING, *(f"{name}:" for name in PROVIDERS)]


def judge_kind(name: str) -> JudgeKind:
    return JUDGES.get(name) or (_EMBEDDER if name.startswith(_EMBEDDING) else _LLM)


def is_paid_embedding(judge: str) -> bool:
    """Whether a judge is an embedder behind an API that charges for texts."""
    from diversity_jax.embedders import is_paid

    return judge.startswith(_EMBEDDING) and is_paid(judge.removeprefix(_EMBEDDING))


def judge_note(label: str) -> str:
    """`JudgeKind.note` of the judge with this label."""
    return next((kind.note for kind in JUDGES.values() if kind.label == label), judge_kind(label).note)


def open_judge(settings: JudgeSettings, cache: Path) -> Judge:
    """The judge of a configuration; its attribute `exam` is the verdict of its stored exam, or None.

    Args:
      cache: file of paid answers, unless `engine.ledger` names another.

    Raises:
      InputError: an unknown judge, a model without a price, a missing API key, or a damaged result of an exam.
    """
    from diversity_jax.cluster_agent.exam import cached_exam

    kind = judge_kind(settings.judge)
    if kind.open is None:
        raise InputError(f"judge {settings.judge}: judges nothing; name another, such as offline or PROVIDER:MODEL")
    judge = kind.open(settings, cache)
    examined = cached_exam(judge, settings.agent, exam_folder(settings, cache))
    vars(judge)["exam"] = examined and examined.verdict  # no part of the protocol `Judge`
    return judge


def exam_folder(settings: JudgeSettings, cache: Path) -> Path:
    """Folder of the results of exams: `exam_dir` of a configuration that has it, else beside the response cache."""
    named: str | None = getattr(settings, "exam_dir", None)
    return Path(named) if named else Path(settings.engine.ledger or cache).parent / "exams"
