"""What a preparation says about its documents, summed over pieces; the same whoever prepared them."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from diversity_jax.prepare.chunks import PieceRecord
from diversity_jax.prepare.manifest import Manifest


def statistics(records: Sequence[PieceRecord], truncated_documents: int) -> dict[str, Any]:
    """The manifest's `statistics`: JSON."""
    left_out: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    for record in records:
        left_out.update(record.left_out)
        lengths.update({int(exponent): count for exponent, count in record.lengths.items()})
    kept = sum(lengths.values())
    tokens = sum(split.tokens for record in records for split in record.splits.values())
    holding = [record for record in records if record.lengths]
    return {
        "documents": sum(record.documents for record in records),
        "kept": kept,
        **{reason: left_out[reason] for reason in ("exact_duplicates", "near_duplicates", "contaminated")},
        "documents_across_rows": sum(
            split.documents_across_rows for record in records for split in record.splits.values()
        ),
        "truncated_documents": truncated_documents,
        "length_tokens": {
            "shortest": min((record.shortest for record in holding), default=0),
            "mean": round((tokens - kept) / kept, 3) if kept else 0.0,
            "longest": max((record.longest for record in holding), default=0),
            "histogram": {_bin(exponent): lengths[exponent] for exponent in sorted(lengths)},
        },
    }


def _bin(exponent: int) -> str:
    return "0" if exponent == 0 else f"{1 << exponent - 1}-{(1 << exponent) - 1}"


def describe(manifest: Manifest) -> str:
    """The statistics for people, a few lines."""
    found, lengths = manifest.statistics, manifest.statistics["length_tokens"]
    left_out = {
        reason.replace("_", " "): found[reason] for reason in ("exact_duplicates", "near_duplicates", "contaminated")
    }
    lines = [
        f"{manifest.name}: {found['kept']:,} of {found['documents']:,} documents kept"
        + "".join(f", {count:,} {reason}" for reason, count in left_out.items() if count),
        f"  lengths in tokens: shortest {lengths['shortest']:,}, mean {lengths['mean']:,.1f}, longest "
        f"{lengths['longest']:,}; "
        f"{found['documents_across_rows']:,} documents lie in more than one row, {found['truncated_documents']:,} "
        "lost tokens",
    ]
    for name, split in manifest.splits.items():
        lines.append(
            f"  {name}: {split.documents:,} documents, {split.tokens:,} tokens in {split.rows:,} rows of "
            f"{manifest.row_tokens:,}, "
            f"{len(split.shards):,} shards; {split.dropped_tokens:,} last tokens dropped"
        )
    if manifest.rejected:
        lines.append(
            "  rejected records: "
            + ", ".join(f"{count:,} {reason}" for reason, count in sorted(manifest.rejected.items()))
        )
    return "\n".join(lines)
