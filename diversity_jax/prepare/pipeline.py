"""Prepares a component: tokenises documents, joins them with end-of-text, cuts rows, permutes and writes them.

Text is cut into chunks in the order of the corpus; any process tokenises any chunk; then every shard of permuted rows
is gathered from the chunks. The rows are a function of text, tokenizer and settings: the same from one process, from
many, and from Apache Beam.

Memory: about 100 MB and, for every process, a chunk's text and tokens or one shard (170 MB with the default settings),
plus the longest document. Disk: twice the tokens while it runs. docs/preparation.md has the measurements.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import dataclasses
import json
import logging
import os
from pathlib import Path
import shutil
from typing import Any

import numpy as np

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import exists, is_remote, join_path, local_folder, open_file, writing
from diversity_jax.core.formats import counted
from diversity_jax.core.stores import StoreError
from diversity_jax.corpus import Corpus
from diversity_jax.corpus.corpus import RecordCorpus, Tally
from diversity_jax.prepare.chunks import (
    ChunkRecord,
    encoder_runs,
    failed_conversations,
    unsure_chunks,
    write_remainders,
)
from diversity_jax.prepare.config import Preparation
from diversity_jax.prepare.decontaminate import Benchmarks
from diversity_jax.prepare.deduplicate import Copy, find_copies, read_overlaps
from diversity_jax.prepare.encoding import FIRST_CHUNK
from diversity_jax.prepare.executors import (
    ENCODING,
    SIGNING,
    TOKENIZER_FOLDER,
    Executor,
    LocalExecutor,
    Staging,
    Statuses,
    chunk_records,
    read_units,
    short,
)
from diversity_jax.prepare.manifest import LEFT_OUT, SPLITS, Manifest, Split, VocabularyInfo, special_text_before
from diversity_jax.prepare.packing import Job, open_format
from diversity_jax.prepare.rows import FLAGGED_DTYPE
from diversity_jax.prepare.shards import ShardName, read_shard_record, write_plan
from diversity_jax.tokenizers.chat_template import BEGIN_WITH_BOS
from diversity_jax.tokenizers.document_start import resolve
from diversity_jax.tokenizers.tokenizer import Tokenizer

log = logging.getLogger(__name__)

_RECORDED = {field.name for field in dataclasses.fields(Preparation)} - {"hygiene", "document_start"} | {
    "begin_of_text_id"
}
"""Fields of a manifest that are copied from the request."""


def prepare(
    corpus: Corpus,
    tokenizer: Tokenizer,
    folder: str | Path,
    settings: Preparation,
    *,
    processes: int | None = None,
    executor: Executor | None = None,
    show: bool = True,
) -> Manifest:
    """Prepares a component in `folder`, or returns the one there of the same text, tokenizer and settings.

    Documents are tokenised and joined with an end-of-text token after each, and a begin-of-text token before it where
    `document_start` says so, cut into rows of `sequence_length + 1` tokens, and the rows are permuted with the seed.
    The last tokens, fewer than a row, are dropped and counted. A preparation that was stopped is resumed: finished
    chunks and shards are verified and used again.

    Args:
      corpus: documents, with a fingerprint; counts of records it rejected go into the manifest.
      folder: where `manifest.json`, the shards, the tokenizer's files and the reports go; a URL with a Beam runner.
      processes: on this machine; None for one a core, and this process alone for little text. A corpus of one chunk is
        always prepared by this process alone.
      executor: instead of this machine's processes, such as `beam.BeamExecutor`.
      show: show progress on standard error.

    Raises:
      InputError: `folder` cannot be written to, another process prepares it, it holds another component, too few tokens
        for one row, a full disk, the corpus has more broken records than it tolerates, or a benchmark file cannot be
        read.
    """
    folder = folder if is_remote(folder) else local_folder(folder, "output_dir")
    staging, manifest_path = Staging(folder), join_path(folder, "manifest.json")
    job = _job(tokenizer, _with_special_text(settings, manifest_path), str(folder), staging.folder, manifest_path)
    job = dataclasses.replace(job, are_failures_tolerated=getattr(corpus, "tolerates_broken", False))
    request = _request(job, (executor or LocalExecutor()).fingerprint(corpus, job.folder))
    if exists(manifest_path) and not exists(staging.folder):
        return _existing(folder, request)
    with staging.locked() as lock:
        if exists(manifest_path):  # another process has finished it, or was killed before it removed the staging files
            manifest = _existing(folder, request)
        else:
            staging.open(request)
            executor = executor or LocalExecutor(processes=processes, show=show, lock=lock)
            try:
                manifest = _prepare(corpus, job, executor, request)
            except InputError as error:
                executor.close()
                if not isinstance(error, StoreError):  # then finished work stays, to be resumed
                    staging.discard()
                    staging.close()
                raise
            finally:
                executor.close()
        staging.close()
    return manifest


def _job(tokenizer: Tokenizer, settings: Preparation, folder: str, staging_dir: str, manifest_path: str | Path) -> Job:
    filtering, begin_id = settings.hygiene, _begin_of_text_id(settings, tokenizer, manifest_path)
    return Job(
        tokenizer=tokenizer,
        settings=settings,
        benchmarks=Benchmarks(filtering.decontaminate, filtering.ngram_words) if filtering.decontaminate else None,
        folder=folder,
        staging_dir=staging_dir,
        dtype=FLAGGED_DTYPE if settings.chat else "<u2" if tokenizer.size <= 1 << 16 else "<u4",
        chat=open_format(settings.chat, tokenizer, begin_id is not None) if settings.chat else None,
        begin_of_text_id=None if settings.chat else begin_id,
    )


def _with_special_text(settings: Preparation, manifest_path: str | Path) -> Preparation:
    """The settings with `special_text` set: `plain`, or that of an existing component older than the setting."""
    if settings.special_text is not None:
        return settings
    value = "plain"
    if exists(manifest_path):
        before = Manifest.load(manifest_path)
        value = before.special_text_read if before.special_text is None else value
        if value != "plain":
            message = "%s: special tokens' texts in its documents are these tokens (special_text %r), as before there "
            log.info(message + "was this setting; prepare it in another folder to have letters", settings.name, value)
    return dataclasses.replace(settings, special_text=value)


def _begin_of_text_id(settings: Preparation, tokenizer: Tokenizer, manifest_path: str | Path) -> int | None:
    """The token written before every document; None: nothing. `auto` keeps that of an existing component."""
    document_start = resolve(settings.document_start, tokenizer)
    if settings.document_start == "auto" and exists(manifest_path):
        before = Manifest.load(manifest_path)
        has_bos = before.begin_of_text_id is not None or before.chat.get("template", "").startswith(BEGIN_WITH_BOS)
        document_start = "bos" if has_bos else "end_of_text"
    return tokenizer.bos_id if document_start == "bos" else None


def _prepare(corpus: Corpus, job: Job, executor: Executor, request: Mapping[str, Any]) -> Manifest:
    """Runs the stages, and writes the manifest last."""
    statuses, copies = None, list[Copy]()
    if job.settings.hygiene.removes_copies:
        executor.run_stage(corpus, job, SIGNING, None)
        statuses, copies = find_copies(job, _checked_reading(corpus, job)[0])
    executor.run_stage(corpus, job, ENCODING, statuses)
    names, tally = _checked_reading(corpus, job)
    records = _sure_records(corpus, job, executor, statuses, names)
    tally.add(failed_conversations(records))
    if isinstance(corpus, RecordCorpus):
        corpus.check_reading(tally)
    remainders, truncated = write_remainders(job, records)
    all_records = [*records, remainders]
    if not sum(record.splits["train"].rows for record in all_records):
        raise InputError(f"component {job.settings.name!r}: {_why_empty(job, records)}")
    plan_hash, shards = write_plan(job, all_records)
    executor.write_shards(job, plan_hash, shards)
    splits = {split: _split(job, all_records, shards, split) for split in SPLITS}
    if (zero := job.tokenizer.zero_in_rows()) is not None:
        message = "%s: id 0 of its vocabulary is %r, which rows hold; SeqIO's packing drops a token for each (%s)"
        log.warning(message, job.settings.name, zero, "docs/mixtures.md, In another codebase")
    manifest = Manifest(
        **{name: request[name] for name in _RECORDED},
        dtype=f"uint{8 * np.dtype(job.dtype).itemsize}",
        vocabulary=copy_tokenizer(job.tokenizer, job.folder),
        source={"corpus": corpus.name, "fingerprint": request["source"]}
        | ({"left_out": dict(sorted(tally.left_out.items()))} if tally.left_out else {}),
        rejected=dict(sorted(tally.rejected.items())),
        hygiene={**request["hygiene"], **_write_reports(job, names, records, copies)},
        statistics=_statistics(job, records, truncated)
        | (_conversation_statistics(job, all_records) if job.chat else {}),
        splits={name: split for name, split in splits.items() if split.rows},
        encoders=tuple(encoder_runs(records)),
        folder=job.folder if is_remote(job.folder) else Path(job.folder),
    )
    manifest.save()
    return manifest


def _why_empty(job: Job, records: Sequence[ChunkRecord]) -> str:
    """Why there is no row of training text, and what to do about it."""
    splits = {split: [record.splits[split] for record in records] for split in SPLITS}
    left_out = sum((Counter(record.left_out) for record in records), Counter[str]())
    held_out = sum(part.documents for part in splits["validation"])
    counts = [f"{count:,} {reason.replace('_', ' ')}" for reason, count in left_out.items()]
    listed = ", ".join([*counts, f"{held_out:,} held out"] if held_out else counts)
    if listed and not sum(part.documents for part in splits["train"]):
        return f"no document is left for training ({listed}); change hygiene or validation_share, or give it more text"
    tokens = sum(part.tokens for part in splits["train"])
    problem = f"{counted(tokens, 'token')} of training text do not fill one row of {job.row_tokens:,}"
    if job.chat:
        problem = f"no conversation fits into a row of {job.row_tokens:,} tokens"
    without = f" (without {listed})" if listed else ""
    return f"{problem}{without}; give it more text, or change sequence_length"


def _sure_records(
    corpus: Corpus, job: Job, executor: Executor, statuses: Statuses | None, names: Sequence[str]
) -> list[ChunkRecord]:
    """Records of all chunks, after the reference has encoded `unsure_chunks` again."""
    records, reference = chunk_records(job, names), job.tokenizer.encoders.reference_name
    unsure = unsure_chunks(records, reference)
    for record in records:
        if record.difference:
            message = "%s: %s; %s encodes what follows, and %d chunks again"
            log.warning(message, job.settings.name, record.difference, reference, len(unsure))
    if not unsure:
        return records
    for name in unsure:
        job.staging.withdraw(f"{name}{ENCODING.record}")
    executor.run_stage(corpus, dataclasses.replace(job, reference_from=FIRST_CHUNK), ENCODING, statuses)
    return chunk_records(job, names)


def _checked_reading(corpus: Corpus, job: Job) -> tuple[list[str], Tally]:
    """All chunks' names in the order of the corpus, and the counts of all units together.

    Raises:
      InputError: more broken records than the corpus tolerates.
    """
    units, total = read_units(job.staging), Tally()
    for _, tally in units.values():
        total.add(tally)
    if isinstance(corpus, RecordCorpus):
        corpus.check_reading(total)
    return [name for names, _ in units.values() for name in names], total


def _split(job: Job, records: Sequence[ChunkRecord], shards: Sequence[ShardName], split: str) -> Split:
    """A split of all chunks; the last record is that of the remainders, whose tokens the chunks already count."""
    parts = [record.splits[split] for record in records]
    rows = sum(part.rows for part in parts)
    return Split(
        documents=sum(part.documents for part in parts),
        tokens=sum(part.tokens for part in parts[:-1]) if job.chat else rows * job.row_tokens,
        text_bytes=sum(part.text_bytes for part in parts),
        dropped_tokens=parts[-1].remainder_tokens,
        rows=rows,
        shards=tuple(read_shard_record(job, shard) for shard in shards if shard.split == split),
    )


def _statistics(job: Job, records: Sequence[ChunkRecord], truncated_documents: int) -> dict[str, Any]:
    """The manifest's `statistics`."""
    left_out, lengths = Counter[str](), Counter[int]()
    for record in records:
        left_out.update(record.left_out)
        lengths.update({int(exponent): count for exponent, count in record.lengths.items()})
    documents_kept = lengths.total()
    splits = [split for record in records for split in record.splits.values()]
    tokens, special = sum(split.tokens for split in splits), sum(split.special_text for split in splits)
    with_documents = [record for record in records if record.lengths]
    return {
        "documents": sum(record.documents for record in records),
        "kept": documents_kept,
        **{reason: left_out[reason] for reason in LEFT_OUT},
        "documents_across_rows": sum(split.documents_across_rows for split in splits),
        "truncated_documents": truncated_documents,
        **({"special_text_documents": special} if special else {}),
        "length_tokens": length_statistics(
            lengths,
            min((record.shortest for record in with_documents), default=0),
            max((record.longest for record in with_documents), default=0),
            tokens - documents_kept * job.added_tokens,
        ),
    }


def length_statistics(lengths: Counter[int], shortest: int, longest: int, total: int) -> dict[str, Any]:
    """Statistics of the documents' lengths in tokens.

    Args:
      lengths: number of documents of 2 ** (i - 1) to 2 ** i - 1 tokens, by i; total: tokens of all documents.
    """
    documents = lengths.total()
    return {
        "shortest": shortest if documents else 0,
        "mean": round(total / documents, 3) if documents else 0.0,
        "longest": longest,
        "histogram": {
            f"{1 << exponent - 1}-{(1 << exponent) - 1}" if exponent else "0": lengths[exponent]
            for exponent in sorted(lengths)
        },
    }


def _conversation_statistics(job: Job, records: Sequence[ChunkRecord]) -> dict[str, Any]:
    """The manifest's further `statistics` of conversations; the last record is that of the remainders."""
    train = [record.splits["train"] for record in records]
    tokens = sum(part.tokens for part in train[:-1])
    capacity = sum(part.rows for part in train) * job.row_tokens
    too_long = sum(split.too_long for record in records for split in record.splits.values())
    if too_long:
        message = "%s: %s longer than a row of %d tokens and left out"
        conversations = counted(too_long, "conversation is", "conversations are")
        log.warning(message, job.settings.name, conversations, job.row_tokens)
    targets = sum(part.target_tokens for part in train)
    return {"too_long": too_long, "target_tokens": targets, "fill": round(tokens / capacity, 6)}


def _write_reports(
    job: Job, names: Sequence[str], records: Sequence[ChunkRecord], copies: Sequence[Copy]
) -> dict[str, Any]:
    """Writes which documents were left out and why, as JSON Lines; returns the reports' entries in the manifest."""
    filtering, about = job.settings.hygiene, dict[str, Any]()
    if job.benchmarks is not None:
        overlaps = [overlap for record in records for overlap in record.overlaps]
        if filtering.removes_copies:
            overlaps = [overlap for name in names for overlap in read_overlaps(job, name)]
        short_items = job.benchmarks.short_items.items()
        about["decontamination_report"] = _write_lines(job, "decontamination.jsonl", overlaps)
        about["benchmark_items"] = dict(sorted(job.benchmarks.items.items()))
        about["benchmark_items_too_short"] = {file: count for file, count in sorted(short_items) if count}
    if filtering.removes_copies:
        about["duplicates_report"] = _write_lines(job, "duplicates.jsonl", copies)
        about["kept_copy"] = "the first in the order of the corpus"
    return about


def _write_lines(job: Job, name: str, items: Sequence[Any]) -> str:
    with writing(join_path(job.folder, name)) as file:
        for item in items:
            file.write((json.dumps(vars(item), sort_keys=True, ensure_ascii=False) + "\n").encode())
    return name


def copy_tokenizer(tokenizer: Tokenizer, folder: str) -> VocabularyInfo:
    """Copies the tokenizer's files into a component's folder, so that another machine needs no other folder."""
    copied = []
    for path in tokenizer.files:
        copied.append(f"{TOKENIZER_FOLDER}/{os.path.basename(path)}")
        with open_file(path) as source, writing(join_path(folder, copied[-1])) as target:
            shutil.copyfileobj(source, target)
    identity = {name: getattr(tokenizer, name) for name in ("kind", "size", "end_of_text_id", "hash")}
    return VocabularyInfo(**identity, files=tuple(copied))


def _request(job: Job, fingerprint: str) -> dict[str, Any]:
    """Everything that the rows depend on, as JSON."""
    benchmarks = job.benchmarks.hashes if job.benchmarks else {}
    settings = dataclasses.asdict(job.settings)
    if settings["special_text"] == special_text_before(job.tokenizer.kind, is_chat=job.chat is not None):
        settings["special_text"] = None  # as in requests older than the setting, which give the same rows
    del settings["document_start"]  # rows depend only on `begin_of_text_id`
    return {
        **settings,
        "hygiene": {**dataclasses.asdict(job.settings.hygiene), "decontaminate": benchmarks},
        "chat": vars(job.chat) if job.chat else {},
        "begin_of_text_id": job.begin_of_text_id,
        "tokenizer": job.tokenizer.hash,
        "source": fingerprint,
    }


def _existing(folder: Path | str, request: Mapping[str, Any]) -> Manifest:
    """The component in `folder`.

    Raises:
      InputError: it is of another request, or a shard is missing or has another size.
    """
    manifest = Manifest.load(join_path(folder, "manifest.json"))
    before = {
        **dataclasses.asdict(manifest),
        "special_text": manifest.special_text_read,
        "tokenizer": manifest.vocabulary.hash,
        "source": manifest.source["fingerprint"],
        "hygiene": {key: manifest.hygiene.get(key) for key in request["hygiene"]},
    }
    before_setting = special_text_before(manifest.vocabulary.kind, is_chat=bool(request["chat"]))
    request = {**request, "special_text": request["special_text"] or before_setting}
    for key, wanted in request.items():
        if before[key] != wanted:
            name = "document_start" if key == "begin_of_text_id" else key
            change = f"{name} ({short(before[key])}, now {short(wanted)})"
            raise InputError(f"{folder}: was prepared with another {change}; choose another folder, or delete this one")
    manifest.check_sizes()
    return manifest
