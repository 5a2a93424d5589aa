"""`score`, `compare` and `measure`: the command `score` for Python programs, on files, sources or texts in memory."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
import os
from pathlib import Path
import tempfile
from typing import Any

from diversity_jax.cluster_agent import NothingUsable, PairComparison, Scorecard, compare_pairs, judge_kind
from diversity_jax.cluster_agent.registry import is_paid_embedding
from diversity_jax.core import config as config_files
from diversity_jax.core import run_info
from diversity_jax.core.buckets import public_name, writes_to
from diversity_jax.core.errors import InputError
from diversity_jax.core.formats import ShownAsTable, SummaryTable, estimate
from diversity_jax.corpus import Corpus, CorpusConfig, open_corpus
from diversity_jax.corpus.readers.text import open_items
from diversity_jax.corpus.sources import open_files
from diversity_jax.metrics import MetricsReport
from diversity_jax.scoring.config import ScoreConfig, is_name, name_of_source
from diversity_jax.scoring.run import ScoreResult, run_score, stored_result

Data = str | os.PathLike | CorpusConfig | Corpus | Iterable[str] | Iterable[os.PathLike] | Iterable[Mapping[str, Any]]
"""A path, pattern, URL or source (`tfds:NAME`, ...), or several paths; or texts, or mappings with a text, in memory."""

_NAMES = "abcdefghijklmnopqrstuvwxyz"


def open_all(data: Sequence[Data], names: Sequence[str] | None, text_field: str) -> dict[str, Corpus]:
    """Opens corpora by name: the given one, that of the file, or `texts` (`a`, `b`, ... of several).

    Raises:
      InputError: something cannot be read, or there is not one name for each.
    """
    if names is not None and (isinstance(names, str) or len(names) != len(data) or len(set(names)) < len(data)):
        raise InputError(f"names={names!r}: give {len(data)} different names, one for each corpus")
    corpora: dict[str, Corpus] = {}
    for number, each in enumerate(data):
        name = names[number] if names else _name(each) or ("texts" if len(data) == 1 else _NAMES[number % 26])
        base, again = name, 2
        while name in corpora:
            name, again = f"{base}_{again}", again + 1
        corpora[name] = open_data(each, name, text_field)
    return corpora


def _name(data: Data) -> str | None:
    """The name of data with a path or source; None for other data."""
    if isinstance(data, CorpusConfig):
        return name_of_source(data.source)
    if isinstance(data, str | os.PathLike):
        return name_of_source(os.fspath(data))
    paths = _paths(data)
    return name_of_source(paths[0]) if paths else None


def open_data(data: Data, name: str, text_field: str) -> Corpus:
    """Opens one corpus; its first document has been read.

    Raises:
      InputError: it cannot be read, holds no document, or is of an unknown kind.
    """
    if isinstance(data, Corpus):
        return data
    if isinstance(data, CorpusConfig):
        return open_corpus(data)
    if isinstance(data, str | os.PathLike):
        return _open_source(os.fspath(data), text_field)
    config = CorpusConfig(source=name, text_field=text_field)
    if paths := _paths(data):
        return open_files(paths, config)
    if hasattr(data, "columns") and hasattr(data, "__getitem__"):  # a table of pandas, polars or pyarrow
        columns = list(getattr(data, "column_names", data.columns))
        names = list(map(str, columns))
        if names.count(text_field) != 1:
            has = "several columns" if text_field in names else "no column"
            raise InputError(f"{name}: has {has} {text_field!r}; set text_field to one of {', '.join(names)}")
        data = data[columns[names.index(text_field)]]
    if hasattr(data, "to_pylist"):  # an array of pyarrow
        data = data.to_pylist()
    if isinstance(data, Mapping | bytes) or not isinstance(data, Iterable):
        kind = type(data).__name__
        raise InputError(f"{name}: is of type {kind}; give a path, or a list of texts or of mappings with a text")
    return open_items(data, config)


def _open_source(source: str, text_field: str) -> Corpus:
    """Opens a path or source; if it can only be a text, the error says how texts are given."""
    try:
        return open_corpus(CorpusConfig(source=source, text_field=text_field))
    except InputError as error:
        if "\n" in source or len(source.split()) > 3:
            raise InputError(f"{error}; texts are given as a list, such as [text]") from None
        raise


def _paths(data: Any) -> list[str]:
    """The items of a list or tuple that are all paths or names of existing files; else none."""
    if not isinstance(data, list | tuple) or not data:
        return []
    is_path = all(isinstance(item, os.PathLike) or (isinstance(item, str) and os.path.isfile(item)) for item in data)
    return [os.fspath(item) for item in data] if is_path else []


def score_folder(
    config: ScoreConfig, command: Sequence[str], corpora: Mapping[str, Corpus] | None = None
) -> tuple[ScoreResult | None, Path]:
    """Scores and measures, and writes all files and the page to `output_dir`; a dry run writes nothing.

    Args:
      command: the command line, for `run.json`.
      corpora: open ones; None: those of the configuration.

    Returns:
      What `run_score` returns, and the path of the page.

    Raises:
      InputError: as `run_score`; where the judge gave nothing usable, the message names the page that says why.
    """
    path = Path(config.output_dir, "report.html")
    try:
        result = run_score(config, corpora)
    except NothingUsable as failure:
        written = _write_unusable(config, failure, command)
        raise InputError(f"{failure}; what was seen and what helps: {written}") from None
    if result is None or config.dry_run:
        return result, path
    run_info.describe(command, config).save(config.output_dir)
    if result.scorecards:
        from diversity_jax.report.pages import score as page

        return result, page.write(
            config.output_dir, result.scorecards, result.metrics, result.checks, result.comparisons
        )
    from diversity_jax.report.pages import metrics as metrics_page

    return result, metrics_page.write(config.output_dir, result.metrics)


def _write_unusable(config: ScoreConfig, failure: NothingUsable, command: Sequence[str]) -> str:
    """Writes scorecard and page of a scoring without a usable figure; returns the path of the page."""
    from diversity_jax.report.pages import audit

    folder = Path(config.output_dir, failure.folder)
    run_info.describe(command, config).save(folder)
    failure.score.save(folder / "scorecard.json")
    return public_name(audit.write_unusable(folder, failure.score))


def score(
    data: Data,
    *,
    judge: str | None = None,
    name: str | None = None,
    text_field: str = "text",
    output_dir: str | os.PathLike | None = None,
    config: str | os.PathLike | ScoreConfig | None = None,
    **settings: Any,
) -> Scorecard:
    """Measures how diverse a corpus is: effective clusters with an interval, as `diversity-jax score` does.

    >>> import diversity_jax as dj
    >>> subjects = [
    ...     "the ferry left the harbour at high tide",
    ...     "the court fined a bank for its false tax return",
    ...     "bees carry pollen to the apple blossom",
    ...     "the baker folds butter into dough",
    ... ]
    >>> texts = [f"On day {day} {subject}" for day in range(20) for subject in subjects]
    >>> scorecard = dj.score(texts, judge="offline", agent={"groupings": 200})
    >>> 3 < scorecard.effective_clusters.value < 6
    True
    >>> scorecard  # doctest: +ELLIPSIS
    texts: ... effective clusters [..., ...]
    ...

    Args:
      data: a path, pattern or source; or a list or iterator of texts, or of mappings with a text.
      judge: `offline` (word vectors, nothing leaves the machine), `openai:MODEL`, ...: see docs/judges.md.
      name: of the corpus on the scorecard; None: the file's, or `texts`.
      text_field: the key that holds the text of a record.
      output_dir: a folder for scorecard, page and paid answers; None: nothing is written, which paid judges refuse.
      config: a configuration or the file of one; None: that of the command.
      settings: other fields of `ScoreConfig`, parts as mappings: `agent={"groupings": 300}`, `metrics="all"`.

    Raises:
      InputError: data that cannot be read, an unknown setting, or whatever the command refuses.
    """
    given = _scoring_config(config, "configs/score.py", settings, judge=judge, output_dir=output_dir)
    if judge_kind(given.judge).open is None:
        raise InputError(f"judge={given.judge}: judges nothing; name one, such as offline, or call measure()")
    result = _run(given, [data], None if name is None else [name], text_field, output_dir)
    return next(iter(result.scorecards.values()))


def measure(
    data: Data,
    metrics: str | Sequence[str] = "all",
    *,
    name: str | None = None,
    text_field: str = "text",
    output_dir: str | os.PathLike | None = None,
    config: str | os.PathLike | ScoreConfig | None = None,
    **settings: Any,
) -> MetricsReport:
    """Measures the baseline metrics of a corpus, without a judge, each with an interval over draws.

    >>> import diversity_jax as dj
    >>> texts = [f"Text {n} of one corpus speaks of {n % 7} things and of {n % 5} others." for n in range(60)]
    >>> report = dj.measure(texts, ["mtld", "compression_ratio_gzip"], baseline={"draws": 3})
    >>> sorted(report.metrics)
    ['compression_ratio_gzip', 'mtld']
    >>> report.metrics["compression_ratio_gzip"].value > 2
    True

    Args:
      metrics: `all`, a group (`lexical`, `embedding`, `perplexity`) or names: see docs/metrics.md.
      settings: other fields of `ScoreConfig`, parts as mappings: `baseline={"draws": 5}`.
      data, name, text_field, output_dir, config: as `score`.

    Raises:
      InputError: data that cannot be read, an unknown metric or setting.
    """
    asked = metrics if isinstance(metrics, str) else ",".join(metrics)
    given = _scoring_config(config, "configs/metrics.py", settings, judge="none", metrics=asked, output_dir=output_dir)
    result = _run(given, [data], None if name is None else [name], text_field, output_dir)
    return next(iter(result.metrics.values()))


@dataclass(frozen=True, kw_only=True, repr=False)
class CorporaComparison(ShownAsTable):
    """Two or more corpora, compared by one judge.

    Attributes:
      scorecards: by name.
      pairs: every two of them: `ratio`, `higher` (the more diverse one, where decided), `comparison`.
      metrics: baseline metrics by name, where `metrics` asked for them.
    """

    scorecards: Mapping[str, Scorecard]
    pairs: Sequence[PairComparison]
    metrics: Mapping[str, MetricsReport] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Effective clusters of the first corpus over those of the second."""
        return self.pairs[0].ratio

    @property
    def higher(self) -> str | None:
        """The name of the more diverse of the first two corpora; None where it is undecided."""
        return self.pairs[0].higher

    def table(self) -> SummaryTable:
        """Every pair with its ratio, and every corpus with its effective clusters."""
        rows = [(f"{pair.first} / {pair.second}", pair.text, pair.higher or "not decided") for pair in self.pairs]
        notes = [
            f"{name}: {estimate(scorecard.effective_clusters, 'effective clusters')}"
            for name, scorecard in self.scorecards.items()
        ]
        notes += [f"{name}: {warning}" for name, scorecard in self.scorecards.items() for warning in scorecard.warnings]
        columns = ("effective clusters", "ratio [95 % interval]", "more diverse")
        return SummaryTable(title=f"Diversity of {', '.join(self.scorecards)}", columns=columns, rows=rows, notes=notes)


def compare(
    *data: Data | Scorecard,
    judge: str | None = None,
    names: Sequence[str] | None = None,
    text_field: str = "text",
    output_dir: str | os.PathLike | None = None,
    config: str | os.PathLike | ScoreConfig | None = None,
    **settings: Any,
) -> CorporaComparison:
    """Compares the diversity of two or more corpora by one judge and one set of criteria.

    >>> import diversity_jax as dj
    >>> subjects = [
    ...     "the ferry left the harbour at high tide",
    ...     "the court fined a bank for its false tax return",
    ...     "bees carry pollen to the apple blossom",
    ...     "the baker folds butter into dough",
    ... ]
    >>> wide = [f"On day {day} {subject}" for day in range(20) for subject in subjects]
    >>> narrow = [f"On day {day} {subject}" for day in range(80) for subject in subjects[:1]]
    >>> compared = dj.compare(wide, narrow, names=["wide", "narrow"], agent={"groupings": 200})
    >>> compared.higher
    'wide'
    >>> compared.ratio > 2
    True

    Args:
      data: as `score`, two or more; or scorecards of one call, or two of equal settings.
      names: of the corpora, in order; None: their files', or `a`, `b`, ...
      judge, text_field, output_dir, config, settings: as `score`; `until_decided=True` stops at a decision.

    Raises:
      InputError: fewer than two, scorecards of different judges, or whatever `score` refuses.
    """
    if len(data) < 2:
        raise InputError(f"compare: {len(data)} corpus is named; give two or more")
    scorecards = [each for each in data if isinstance(each, Scorecard)]
    if scorecards:
        if len(scorecards) < len(data):
            raise InputError("compare: some are scorecards and some are not; give one kind")
        given = {**settings, "judge": judge, "output_dir": output_dir, "config": config}
        alpha = config_files.plain_number(given.pop("alpha", 0.05))
        if not isinstance(alpha, int | float):
            raise InputError(f"alpha={alpha!r}: must be a number, such as 0.05")
        if unused := [name for name, value in given.items() if value is not None]:
            raise InputError(f"{unused[0]}: has no effect on scorecards; leave it out, or give the corpora")
        corpora = _named(scorecards, names)
        return CorporaComparison(scorecards=corpora, pairs=compare_pairs(corpora, alpha))
    asked = _scoring_config(config, "configs/score.py", settings, judge=judge, output_dir=output_dir)
    result = _run(asked, data, names, text_field, output_dir)  # type: ignore[arg-type]  # no scorecards among them
    return CorporaComparison(scorecards=result.scorecards, pairs=result.comparisons, metrics=result.metrics)


def _named(scorecards: Sequence[Scorecard], names: Sequence[str] | None) -> dict[str, Scorecard]:
    names = names or [str(scorecard.corpus["name"]) for scorecard in scorecards]
    if isinstance(names, str) or len(names) != len(scorecards):
        raise InputError(f"names={names!r}: give {len(scorecards)} names, one for each scorecard")
    if len(set(names)) < len(names):
        names = [f"{name} ({number})" for number, name in enumerate(names, 1)]
    return dict(zip(names, scorecards, strict=True))


def _scoring_config(
    given: str | os.PathLike | ScoreConfig | None, ready: str, settings: Mapping[str, Any], **values: Any
) -> ScoreConfig:
    """The configuration of a call."""
    config = config_files.configuration(given, ready, ScoreConfig)
    for name in ("dry_run", "corpus", "corpora"):
        if settings.get(name):
            raise InputError(f"{name}: is a field of the command; here it has no meaning")
    named = {name: os.fspath(value) if name == "output_dir" else value for name, value in values.items() if value}
    return config_files.with_fields(config, {**settings, **named})


def _run(
    config: ScoreConfig,
    data: Sequence[Data],
    names: Sequence[str] | None,
    text_field: str,
    output_dir: str | os.PathLike | None,
) -> ScoreResult:
    judge_kind(config.judge).check(config, not config.forecast_only)
    corpora = open_all(data, names, text_field)
    if output_dir is None:
        if judge_kind(config.judge).is_llm or is_paid_embedding(config.judge):
            paid = f"judge={config.judge}: its answers are kept in output_dir, so that none is paid for twice"
            raise InputError(f"{paid}; give one, such as output_dir='runs/score'")
        with tempfile.TemporaryDirectory(prefix="diversity_jax-") as folder:
            result = run_score(replace(config, output_dir=folder), corpora)
            assert result is not None  # nothing was scored before in a new folder
            return result
    if len(corpora) > 1 and (wrong := [name for name in corpora if not is_name(name)]):
        raise InputError(f"names: {wrong[0]!r} is to be a folder's too; use letters, digits and _ . + @ - or blanks")

    @writes_to("output_dir")
    def in_folder(config: ScoreConfig) -> ScoreResult:
        result, _ = score_folder(config, ["diversity_jax.score"], corpora)
        return result or stored_result(config, corpora)

    return in_folder(config)
