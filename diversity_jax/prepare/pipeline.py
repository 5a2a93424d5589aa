"""From documents to rows of tokens on disk: tokenise, join with end-of-text, cut, permute, write, once.

Text is cut into pieces in the order of the corpus; any process tokenises any piece; then every shard of permuted rows
is gathered out of the pieces. The rows are a function of text, tokenizer and settings: the same from one process, from
many, and from Apache Beam.

Memory: about 100 MB and, for every process, a piece's text and tokens or one shard (170 MB as they are set by default),
  plus the
longest document. Disk: twice the tokens while it runs. docs/preparation.md has the measurements.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import logging
import os
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import DiskFull, exists, is_remote, join_path, open_file, writing
from diversity_jax.corpus import Corpus
from diversity_jax.corpus.corpus import Tally
from diversity_jax.prepare.chunks import Job, PieceRecord, read_tail, write_tails
from diversity_jax.prepare.config import Hygiene, Preparation
from diversity_jax.prepare.decontaminate import Benchmarks
from diversity_jax.prepare.deduplicate import Copy, find_copies, read_overlaps, report_lines
from diversity_jax.prepare.executors import ENCODING, SIGNING, LocalRunner, Runner, read_units
from diversity_jax.prepare.manifest import SPLITS, Manifest, Split, VocabularyInfo
from diversity_jax.prepare.packing import open_format
from diversity_jax.prepare.rows import DTYPE
from diversity_jax.prepare.shards import ShardName, read_shard_record, write_plan
from diversity_jax.prepare.staging import Workplace
from diversity_jax.prepare.statistics import statistics
from diversity_jax.tokenizers.tokenizer import Tokenizer

log = logging.getLogger(__name__)

__all__ = ["Hygiene", "Preparation", "prepare"]


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: str | Path,
    settings: Preparation,
    *,
    processes: int | None = None,
    runner: Runner | None = None,
    show: bool = True,
) -> Manifest:
    """Prepares a component in `folder`, or returns what stands there if it was prepared from the same things.

    Documents are tokenised and joined with an end-of-text token after each, cut into rows of `sequence_length + 1`
    tokens, and the rows are permuted with the seed. The last tokens, fewer than a row, are dropped and counted. A
    preparation that was stopped goes on where it was: finished pieces and shards are verified and kept.

    Args:
      corpus: documents, with a fingerprint; what it rejected while reading goes into the manifest.
      folder: where `manifest.json`, the shards, the tokenizer's files and the reports go; a URL with a Beam runner.
      processes: on this machine; None for one a core. A corpus of one piece is always prepared by this process alone.
      runner: in place of this machine's processes; see `prepare_beam`.
      show: progress, on standard error.

    Raises:
      InputError: too few tokens for one row, a full disk, another process prepares `folder`, it holds a component
        prepared otherwise, the corpus has more broken records than it tolerates, or a benchmark file cannot be read.
    """
    folder = folder if is_remote(folder) else Path(folder)
    place, hygiene = Workplace(folder), settings.hygiene
    job = Job(
        tokenizer=tokenizer,
        settings=settings,
        benchmarks=Benchmarks(hygiene.decontaminate, hygiene.ngram_words) if hygiene.decontaminate else None,
        folder=str(folder),
        workplace=place.path,
        dtype=DTYPE if settings.chat else "<u2" if tokenizer.size <= 1 << 16 else "<u4",
        chat=open_format(settings.chat, tokenizer) if settings.chat else None,
    )
    request = _request(job, (runner or LocalRunner()).fingerprint(corpus, job.folder))
    if exists(join_path(folder, "manifest.json")) and not exists(place.path):
        return _standing(folder, request)
    with place.locked() as lock:
        if exists(
            join_path(folder, "manifest.json")
        ):  # another process finished it meanwhile, or was killed while it tidied up
            manifest = _standing(folder, request)
        else:
            place.open(request)
            runner = runner or LocalRunner(processes=processes, show=show, lock=lock)
            try:
                manifest = _prepare(corpus, job, place, runner, request)
            except DiskFull:
                raise  # what is finished stays, to go on from
            except InputError:
                runner.close()
                place.discard()
                place.close()
                raise
            finally:
                runner.close()
        place.close()
    return manifest


def _prepare(corpus: Corpus, job: Job, place: Workplace, runner: Runner, request: Mapping[str, Any]) -> Manifest:
    """The passes, and the manifest as the last act."""
    fates, copies = None, []
    if job.settings.hygiene.removes_copies:
        runner.pieces(corpus, job, place, SIGNING, None)
        fates, copies = find_copies(job, _settled(corpus, place)[0])
    runner.pieces(corpus, job, place, ENCODING, fates)
    names, tally = _settled(corpus, place)
    records = [PieceRecord.load(join_path(place.path, f"{name}{ENCODING.record}")) for name in names]
    tails = {split: _tails(job, records, split) for split in SPLITS}
    records.append(write_tails(job, "tails", tails))
    if not sum(record.splits["train"].rows for record in records):
        tokens = sum(record.splits["train"].tokens for record in records[:-1])
        if job.chat:
            raise InputError(
                f"component {job.settings.name!r}: no conversation fits into a row of "
                f"{job.settings.sequence_length + 1:,} tokens; "
                "raise sequence_length"
            )
        raise InputError(
            f"component {job.settings.name!r}: {tokens:,} tokens of training text do not fill one row of "
            f"{job.settings.sequence_length + 1:,}; give it more text or a smaller sequence_length"
        )
    plan_hash, shards = write_plan(job, records)
    runner.shards(job, place, plan_hash, shards)
    reports = _write_reports(job, names, records, copies)
    truncated = sum(_truncated_documents(job, tails[split], records[-1].splits[split].tail_tokens) for split in SPLITS)
    manifest = Manifest(
        **{key: request[key] for key in _OWN_FIELDS},
        dtype=f"uint{8 * np.dtype(job.dtype).itemsize}",
        vocabulary=_keep_tokenizer(job.tokenizer, job.folder),
        source={"corpus": corpus.name, "fingerprint": request["source"]},
        rejected=dict(sorted(tally.rejected.items())),
        hygiene={**request["hygiene"], **reports},
        statistics=statistics(records[:-1], truncated) | (_of_conversations(job, records) if job.chat else {}),
        splits={split: found for split in SPLITS if (found := _split(job, records, shards, split)).rows},
        folder=job.folder if is_remote(job.folder) else Path(job.folder),
    )
    manifest.save()
    return manifest


_OWN_FIELDS = ("name", "kind", "sequence_length", "seed", "validation_share", "piece_characters", "shard_bytes", "chat")


def _settled(corpus: Corpus, place: Workplace) -> tuple[list[str], Tally]:
    """All pieces' names in the order of the corpus, and what reading it met.

    Raises:
      InputError: more broken records than the corpus tolerates.
    """
    units, whole = read_units(place), Tally()
    for _, tally in units.values():
        whole.add(tally)
    if hasattr(corpus, "check_reading"):
        corpus.check_reading(whole)
    return [name for names, _ in units.values() for name in names], whole


def _tails(job: Job, records: Sequence[PieceRecord], split: str) -> np.ndarray:
    tails = [read_tail(job, record, split) for record in records if record.splits[split].tail_tokens]
    return np.concatenate(tails) if tails else np.empty(0, job.dtype)


def _truncated_documents(job: Job, tails: np.ndarray, dropped_tokens: int) -> int:
    """Documents that end among the last tokens, which fill no row."""
    return int((tails[len(tails) - dropped_tokens :] == job.tokenizer.end_of_text_id).sum())


def _split(job: Job, records: Sequence[PieceRecord], shards: Sequence[ShardName], split: str) -> Split:
    found = [record.splits[split] for record in records]
    rows = sum(part.rows for part in found)
    return Split(
        documents=sum(part.documents for part in found),
        tokens=sum(part.tokens for part in found[:-1]) if job.chat else rows * (job.settings.sequence_length + 1),
        text_bytes=sum(part.text_bytes for part in found),
        dropped_tokens=found[-1].tail_tokens,
        rows=rows,
        shards=tuple(read_shard_record(job, shard) for shard in shards if shard.split == split),
    )


def _of_conversations(job: Job, records: Sequence[PieceRecord]) -> dict[str, Any]:
    """How well rows of conversations are filled, and with what."""
    train = [record.splits["train"] for record in records]
    tokens = sum(part.tokens for part in train[:-1])
    whole = sum(part.rows for part in train) * (job.settings.sequence_length + 1)
    too_long = sum(split.too_long for record in records for split in record.splits.values())
    if too_long:
        log.warning(
            "%s: %d conversations are longer than a row of %d tokens and left out",
            job.settings.name,
            too_long,
            job.settings.sequence_length + 1,
        )
    return {
        "too_long": too_long,
        "target_tokens": sum(part.targets for part in train),
        "fill": round(tokens / whole, 6),
    }


def _write_reports(
    job: Job, names: Sequence[str], records: Sequence[PieceRecord], copies: Sequence[Copy]
) -> dict[str, Any]:
    """What was left out and why, as JSON Lines beside the manifest; returns what the manifest says about them."""
    hygiene, said = job.settings.hygiene, {}
    if job.benchmarks is not None:
        overlaps = [overlap for record in records for overlap in record.overlaps]
        if hygiene.removes_copies:
            overlaps = [overlap for name in names for overlap in read_overlaps(job, name)]
        _write_lines(job, "decontamination.jsonl", overlaps)
        said["decontamination_report"] = "decontamination.jsonl"
        said["benchmark_items"] = dict(sorted(job.benchmarks.items.items()))
        said["benchmark_items_too_short"] = {
            file: count for file, count in sorted(job.benchmarks.short_items.items()) if count
        }
    if hygiene.removes_copies:
        _write_lines(job, "duplicates.jsonl", copies)
        said["duplicates_report"] = "duplicates.jsonl"
        said["kept_copy"] = "the first in the order of the corpus"
    return said


def _write_lines(job: Job, name: str, items: Sequence[Any]) -> None:
    with writing(join_path(job.folder, name)) as file:
        file.writelines(report_lines(items))


def _keep_tokenizer(tokenizer: Tokenizer, folder: str) -> VocabularyInfo:
    """Copies the tokenizer's files beside the rows, so that the folder is all another machine needs."""
    kept = []
    for path in tokenizer.files:
        kept.append(f"tokenizer/{os.path.basename(path)}")
        with open_file(path) as source, writing(join_path(folder, kept[-1])) as target:
            shutil.copyfileobj(source, target)
    return VocabularyInfo(
        kind=tokenizer.kind,
        size=tokenizer.size,
        end_of_text_id=tokenizer.end_of_text_id,
        hash=tokenizer.hash,
        files=tuple(kept),
    )


def _request(job: Job, fingerprint: str) -> dict[str, Any]:
    """What the rows depend on, as JSON."""
    benchmarks = dict(job.benchmarks.hashes) if job.benchmarks else {}
    return {
        **dataclasses.asdict(job.settings),
        "hygiene": {**dataclasses.asdict(job.settings.hygiene), "decontaminate": benchmarks},
        "chat": job.chat.to_json() if job.chat else {},
        "tokenizer": job.tokenizer.hash,
        "source": fingerprint,
    }


def _standing(folder: Path | str, request: Mapping[str, Any]) -> Manifest:
    """The component that stands in `folder`, if it is the one asked for."""
    manifest = Manifest.load(join_path(folder, "manifest.json"))
    found = {
        **dataclasses.asdict(manifest),
        "tokenizer": manifest.vocabulary.hash,
        "source": manifest.source["fingerprint"],
    }
    found["hygiene"] = {key: manifest.hygiene.get(key) for key in request["hygiene"]}
    for key, wanted in request.items():
        if found[key] != wanted:
            raise InputError(
                f"{folder}: was prepared with another {key} ({_short(found[key])}, now {_short(wanted)}); "
                "prepare into another folder, or delete this one"
            )
    manifest.check_sizes()
    return manifest


def _short(value: Any) -> str:
    return value[:12] if isinstance(value, str) else str(value)
