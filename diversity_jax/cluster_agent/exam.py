"""Exam of a judge: it scores small labelled corpora, whose diversity is known, by the same calls as any corpus.

The result is a table of true and measured effective clusters, error rates by kind of pair, and a verdict. It is stored
in a file named by judge, wording and settings, so that a second exam of the same judge makes no calls.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
import itertools
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from diversity_jax.cluster_agent.cluster import JudgedGrouping
from diversity_jax.cluster_agent.config import AgentConfig
from diversity_jax.cluster_agent.corpus_scorer import CorpusScorer
from diversity_jax.cluster_agent.cost_forecast import plan_calls
from diversity_jax.cluster_agent.criteria import ProposedCriteria, load_criteria
from diversity_jax.cluster_agent.embedding_judge import EmbeddingJudge, adapted
from diversity_jax.cluster_agent.estimators import values
from diversity_jax.cluster_agent.exam_corpora import ExamCorpus, exam_corpora, neighbour_of
from diversity_jax.cluster_agent.exam_result import (
    HALF,
    INFORMATION,
    NO_PAIRS,
    RIGHT,
    VERSION,
    WRONG,
    ExamReading,
    ExamResult,
    PairCounts,
    total,
)
from diversity_jax.cluster_agent.groupings import Groupings
from diversity_jax.cluster_agent.score import blocking
from diversity_jax.cluster_agent.types import CallTotals, Judge
from diversity_jax.core import files
from diversity_jax.core.errors import InputError
from diversity_jax.core.intervals import Estimate, t_quantile
from diversity_jax.llm import PlannedCalls

_SEED = 1  # of every exam

GROUPINGS: Mapping[str, int] = {
    "subjects_24": 60,
    HALF: 20,
    "subjects_6": 12,
    "one_subject": 10,
    "neighbours": 20,
    "skewed": 20,
    "styles": 16,
    "lengths": 12,
    "languages": 16,
}
"""Groupings of each corpus at K = 10, two calls each; at other K down to half or up to twice as many, so that about as
many pairs are shown.
"""
_USUAL_K, _K_WHERE_THE_RUN_CHOOSES = 10, 20
_SMALLEST_HALF = 3  # samples; where K / 2 is less the corpus `HALF` is left out
_CRITERIA = Path(__file__).with_name("exam_criteria.json")
"""Criteria of every exam, written by hand, so that no call is spent on proposals and all judges have the same."""


def exam_path(judge: Judge, config: AgentConfig, folder: str | os.PathLike) -> Path:
    """The file of a judge's exam in `folder`, different for every judge, wording, version of the exam, and setting that
    answers depend on.
    """
    return Path(folder) / f"exam-{_key(judge, config)[:16]}.json"


def cached_exam(judge: Judge, config: AgentConfig, folder: str | os.PathLike) -> ExamResult | None:
    """The stored result of this judge's exam with these settings; None where there is none in `folder`.

    Raises:
      InputError: the file is damaged.
    """
    path = exam_path(judge, config, folder)
    return ExamResult.from_json(files.read_json(path), str(path)) if path.exists() else None


def exam_calls(config: AgentConfig) -> int:
    """Calls of an exam without repairs."""
    return sum(exam.forecast_calls() for _, exam in _parts(config).values())


def plan_exam(config: AgentConfig) -> list[PlannedCalls]:
    """The calls of an exam with their mean tokens; price them with `llm.forecast`."""
    return [planned for corpus, exam in _parts(config).values() for planned in plan_calls([corpus], exam)]


async def examine_async(judge: Judge, config: AgentConfig, folder: str | os.PathLike) -> ExamResult:
    """Examines a judge, or reads the stored result of its exam.

    Args:
      config: of the run, from which `_settings` are taken.
      folder: of the results of exams.

    Raises:
      InputError: the run ended before the exam did (the budget is spent, the server is gone), or a damaged file.
    """
    stored = cached_exam(judge, config, folder)
    if stored is not None:
        return stored
    config = adapted(judge, config)
    judge.expect(exam_calls(config))
    parts = [_read(name, corpus, judge, exam) for name, (corpus, exam) in _parts(config).items()]
    results = await asyncio.gather(*parts)
    usage = CallTotals.of(used for _, used in results)
    result = ExamResult(
        judge=judge.label,
        prompt_version=judge.prompt_version,
        identity=dict(judge.identity),
        settings=_settings(config),
        relative=isinstance(judge, EmbeddingJudge),
        readings=tuple(reading for reading, _ in results),
        calls=usage.calls,
        tokens={"prompt": usage.prompt_tokens, "completion": usage.completion_tokens},
        cost_usd=usage.cost_usd,
    )
    path = exam_path(judge, config, folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, result.to_json())
    return result


examine = blocking(examine_async)


def _settings(config: AgentConfig) -> dict[str, Any]:
    """The settings of a run that answers depend on."""
    names = ("samples_per_grouping", "verify", "canary_share", "reasoning_words", "max_characters", "reading_words")
    settings = {name: getattr(config, name) for name in (*names, "temperature", "max_output_tokens", "schema_limits")}
    return settings | {"samples_per_grouping": config.samples_per_grouping or _K_WHERE_THE_RUN_CHOOSES}


def _key(judge: Judge, config: AgentConfig) -> str:
    texts = [corpus.fingerprint() for corpus in exam_corpora().values()]
    asked = [judge.label, judge.prompt_version, dict(judge.identity), _settings(adapted(judge, config))]
    return files.content_hash([VERSION, texts, GROUPINGS, files.file_hash(_CRITERIA), *asked])


def _parts(config: AgentConfig) -> dict[str, tuple[ExamCorpus, AgentConfig]]:
    """Each corpus with the settings for its scoring."""
    parts = {}
    for name, usual in GROUPINGS.items():
        corpus = exam_corpora()[name.removesuffix("_half")]
        k = _settings(config)["samples_per_grouping"] // (2 if name == HALF else 1)
        if name == HALF and k < _SMALLEST_HALF:
            continue
        k = min(k, len(corpus))
        times = min(2.0, max(0.5, math.comb(_USUAL_K, 2) / math.comb(k, 2)))
        parts[name] = (
            corpus,
            AgentConfig(
                **{**_settings(config), "samples_per_grouping": k},
                groupings=math.ceil(usual * times),
                criteria=str(_CRITERIA),
                criteria_sets=1,
                recheck_share=0.0,
                control_variate=False,  # `_reading` compares with the labels of the samples shown instead
                verify_share=1.0 if config.verify else None,
                examples=0,
                seed=_SEED,
                in_flight=config.in_flight,
            ),
        )
    return parts


async def _read(name: str, corpus: ExamCorpus, judge: Judge, config: AgentConfig) -> tuple[ExamReading, CallTotals]:
    judged: list[JudgedGrouping] = []
    proposed = ProposedCriteria(criteria=load_criteria(str(_CRITERIA)))
    scorer = CorpusScorer(corpus, judge, config, proposed, observe=judged.append)
    refused = ""
    try:
        await scorer.extend(config.groupings)
    except InputError as error:
        if name not in INFORMATION:
            raise
        refused = str(error)  # a judge need not read all languages
    if scorer.ended:
        raise InputError(f"exam of judge {judge.label}: ended before it was done: {scorer.ended}")
    counts = [_count_pairs(corpus, grouping) for grouping in judged]
    same = [total([pairs], RIGHT).shown for pairs, each in zip(counts, judged, strict=True) if not each.dropped]
    drops = Counter(grouping.dropped for grouping in judged if grouping.dropped)
    details = {grouping.dropped: grouping.detail for grouping in reversed(judged) if grouping.dropped}
    reading = ExamReading(
        corpus=name,
        truth=corpus.effective_clusters,
        reading=_reading(corpus, scorer.groupings, np.array(same, float)),
        samples_per_grouping=config.samples_per_grouping,
        groupings=len(judged),
        drops=dict(sorted(drops.items())),
        pairs={kind: pairs for kind in (*RIGHT, *WRONG) if (pairs := total(counts, [kind])).shown},
        detail=refused or details.get(max(drops, key=drops.__getitem__, default=""), ""),
    )
    return reading, scorer.usage


def _reading(corpus: ExamCorpus, groupings: Groupings, same: np.ndarray) -> Estimate | None:
    """Effective clusters by a judge: truth / r, with r the ratio of T to the share of the shown pairs that have the
    same label. This leaves out the variance due to the samples drawn. The error is that of a ratio of means (Cochran
    1977, chapter 6), at least that of a single pair.

    Args:
      same: [N] pairs with the same label in each usable grouping.
    """
    if not same.sum():
        return None
    together, number = values(groupings) * groupings.possible_pairs, len(groupings)
    ratio = together.sum() / same.sum()
    residuals = together - ratio * same
    error = max(1.0, math.sqrt(residuals @ residuals * number / max(1, number - 1))) / same.sum()
    half = t_quantile(0.975, max(1, number - 1)) * error

    def clusters(ratio: float) -> float:
        """Effective clusters at this ratio, from 1 to the number of texts."""
        return float(min(len(corpus), max(1.0, corpus.effective_clusters / max(ratio, 1e-9))))

    high = clusters(ratio - half) if ratio > half else None
    return Estimate(value=clusters(ratio), low=clusters(ratio + half), high=high)


def _count_pairs(corpus: ExamCorpus, grouping: JudgedGrouping) -> dict[str, PairCounts]:
    """The pairs of one grouping's drawn samples by kind; none where no partition came."""
    counts: dict[str, PairCounts] = {}
    cluster_of = {sample_id: cluster for cluster in grouping.clusters for sample_id in cluster.sample_ids}
    drawn = [sample for sample in grouping.planned.samples if sample.sample_id in cluster_of]
    for a, b in itertools.combinations(drawn, 2):
        cluster = cluster_of[a.sample_id]
        claimed = cluster is cluster_of[b.sample_id]
        together = claimed and not {a.sample_id, b.sample_id} & set(cluster.misplaced)
        kind = _kind(corpus, int(a.document), int(b.document))
        pair = PairCounts(shown=1, claimed=int(claimed), together=int(together))
        counts[kind] = counts.get(kind, NO_PAIRS) + pair
    return counts


def _kind(corpus: ExamCorpus, a: int, b: int) -> str:
    """The relation of two texts: a key of `RIGHT` or `WRONG`."""
    same_style, same_language = (values[a] == values[b] for values in (corpus.styles, corpus.languages))
    if corpus.labels[a] == corpus.labels[b]:
        return "same_languages" if not same_language else "same" if same_style else "same_styles"
    if neighbour_of()[corpus.labels[a]] == corpus.labels[b]:
        return "neighbours"
    if same_style and corpus.styles[a] != "plain":
        return "one_style"
    return "one_language" if same_language and len(set(corpus.languages)) > 1 else "unrelated"
