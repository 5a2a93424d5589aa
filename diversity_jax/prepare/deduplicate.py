"""Copies among documents: exact ones by digest, near ones by MinHash signatures and locality-sensitive hashing
(datasketch).

Documents are compared in the order of the corpus, and the first of several copies is kept: a document is left out if,
and only if, an earlier document that is kept has the same text or a signature at least `near_duplicates` similar.
Candidates come from `datasketch.MinHashLSH`; each is verified by the similarity of the whole signatures.

Memory: 24 bytes a document while one band at a time is searched for shared buckets, then about 4 KB for every document
  that shares one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import hashlib
import io
import json
from typing import Any

import numpy as np

from diversity_jax.core.files import join_path, open_file, read_json, write_json, writing
from diversity_jax.prepare.chunks import EXACT_DUPLICATE, KEPT, NEAR_DUPLICATE, Job, Piece, screen
from diversity_jax.prepare.config import Hygiene
from diversity_jax.prepare.decontaminate import Overlap
from diversity_jax.prepare.ngram_hashes import WordHashes, hash_runs, windows, words


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A document that is left out, the earlier one it is a copy of, and how similar they are (1 for an exact copy)."""

    document: str
    copy_of: str
    kind: str
    similarity: float


class Signer:
    """MinHash signatures and LSH bands of texts, the same in every process."""

    def __init__(self, hygiene: Hygiene):
        from datasketch import MinHash, MinHashLSH

        self._hygiene, self._word_hashes = hygiene, WordHashes()
        self._empty = MinHash(hygiene.permutations, seed=1, hashfunc=int)
        lsh = MinHashLSH(threshold=hygiene.near_duplicates, num_perm=hygiene.permutations, weights=(0.1, 0.9))
        self.bands, self.band_rows = lsh.b, lsh.r

    def signature(self, text: str) -> np.ndarray:
        """uint32 [permutations] of the text's shingles; of all its words, where they are fewer than one shingle."""
        hashes = self._word_hashes(words(text))
        shingles = windows(hashes, min(self._hygiene.shingle_words, max(1, len(hashes))))
        minhash = self._empty.copy()
        minhash.update_batch(np.unique(shingles >> np.uint64(32)).tolist())
        return minhash.hashvalues.astype(np.uint32)

    def band_hashes(self, signatures: np.ndarray) -> np.ndarray:
        """A hash of each band: uint64 [bands, documents] of signatures uint32 [documents, permutations]."""
        parts = [
            signatures[:, band * self.band_rows : (band + 1) * self.band_rows].astype(np.uint64)
            for band in range(self.bands)
        ]
        return np.stack([hash_runs(part) for part in parts])

    def minhash(self, signature: np.ndarray) -> Any:
        """The signature as datasketch holds it."""
        copy = self._empty.copy()
        copy.hashvalues = signature.astype(copy.hashvalues.dtype)
        return copy

    def index(self) -> Any:
        """An empty LSH index of the same bands."""
        from datasketch import MinHashLSH

        return MinHashLSH(num_perm=self._hygiene.permutations, params=(self.bands, self.band_rows))


def sign_piece(job: Job, piece: Piece) -> tuple[int, int, int]:
    """Writes what is needed to compare a piece's documents with all others: digests, signatures, ids, and who is
    contaminated.

    Returns:
      Documents, characters, and 0 tokens.
    """
    fates, overlaps = screen(job, piece)
    arrays = {
        "fates": fates,
        "digests": np.array([hashlib.blake2b(text.encode(), digest_size=16).digest() for text in piece.texts], "V16"),
        "ids": np.frombuffer("\n".join(piece.ids).encode(), np.uint8),
    }
    if job.settings.hygiene.near_duplicates is not None:
        signer = _signer(job.settings.hygiene)
        signatures = np.stack([signer.signature(text) for text in piece.texts])
        arrays |= {"signatures": signatures, "bands": signer.band_hashes(signatures)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    data = buffer.getvalue()
    with writing(join_path(job.workplace, f"{piece.name}.signatures")) as file:
        file.write(data)
    record = {
        "name": piece.name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "overlaps": [vars(overlap) for overlap in overlaps],
    }
    write_json(join_path(job.workplace, f"{piece.name}.signatures.json"), record)
    return len(piece.texts), sum(map(len, piece.texts)), 0


def read_overlaps(job: Job, piece: str) -> list[Overlap]:
    """Overlaps with benchmarks that were found when a piece was signed."""
    record = read_json(join_path(job.workplace, f"{piece}.signatures.json"))
    return [Overlap(**overlap) for overlap in record["overlaps"]]


_SIGNERS: dict[Hygiene, Signer] = {}


def _signer(hygiene: Hygiene) -> Signer:
    if hygiene not in _SIGNERS:
        _SIGNERS[hygiene] = Signer(hygiene)
    return _SIGNERS[hygiene]


def find_copies(job: Job, pieces: Sequence[str]) -> tuple[dict[str, np.ndarray], list[Copy]]:
    """Decides over all signed pieces.

    Args:
      pieces: names, in the order of the corpus.

    Returns:
      What becomes of each document, uint8 [documents] by piece, and the copies left out.
    """
    files = _SignedPieces(job, pieces)
    fates = np.concatenate([part for _, part in files.each("fates")] or [np.empty(0, np.uint8)])
    origins = _exact(files, fates)
    copies = [(i, origin, EXACT_DUPLICATE, 1.0) for i, origin in origins]
    if job.settings.hygiene.near_duplicates is not None:
        copies += [
            (i, origin, NEAR_DUPLICATE, similarity)
            for i, origin, similarity in _near(files, fates, job.settings.hygiene)
        ]
    ids = files.ids({position for i, origin, _, _ in copies for position in (i, origin)})
    kinds = {EXACT_DUPLICATE: "exact", NEAR_DUPLICATE: "near"}
    found = [
        Copy(document=ids[i], copy_of=ids[origin], kind=kinds[kind], similarity=value)
        for i, origin, kind, value in sorted(copies)
    ]
    return {name: fates[start:end] for name, start, end in files.bounds()}, found


class _SignedPieces:
    """The signature files of all pieces as if they were one; documents are numbered through."""

    def __init__(self, job: Job, pieces: Sequence[str]):
        self._job, self._pieces = job, pieces
        counts = [len(fates) for _, fates in self.each("fates")]
        self._starts = np.cumsum([0, *counts])

    def each(self, array: str) -> Iterator[tuple[int, np.ndarray]]:
        """(number of the piece, array) of every piece."""
        for number in range(len(self._pieces)):
            yield number, self._load(number, array)

    def _load(self, number: int, array: str) -> np.ndarray:
        with open_file(join_path(self._job.workplace, f"{self._pieces[number]}.signatures")) as file:
            return np.load(file)[array]

    def bounds(self) -> Iterator[tuple[str, int, int]]:
        """(name, first document, end) of every piece."""
        yield from zip(self._pieces, self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)

    def signatures(self, positions: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(document, signature) at ascending positions, a piece at a time."""
        edges = np.searchsorted(positions, self._starts)
        for number in np.flatnonzero(np.diff(edges)).tolist():
            here, signatures = positions[edges[number] : edges[number + 1]], self._load(number, "signatures")
            for position in here.tolist():
                yield position, signatures[position - self._starts[number]]

    def ids(self, positions: set[int]) -> dict[int, str]:
        """Ids of some documents."""
        ordered, found = np.array(sorted(positions), np.int64), {}
        edges = np.searchsorted(ordered, self._starts)
        for number in np.flatnonzero(np.diff(edges)).tolist():
            names = self._load(number, "ids").tobytes().decode().split("\n")
            for position in ordered[edges[number] : edges[number + 1]].tolist():
                found[position] = names[position - int(self._starts[number])]
        return found


def _exact(files: _SignedPieces, fates: np.ndarray) -> list[tuple[int, int]]:
    """(copy, first) of every text that was there before; marks them in `fates`."""
    digests = np.concatenate([part for _, part in files.each("digests")] or [np.empty(0, "V16")])
    candidates = np.flatnonzero(fates == KEPT)
    pairs = digests[candidates].view("<u8").reshape(-1, 2)
    order = np.lexsort((candidates, pairs[:, 1], pairs[:, 0]))
    same = np.append(False, (pairs[order[1:]] == pairs[order[:-1]]).all(1)) if len(order) else np.empty(0, bool)
    first = candidates[order][np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
    copies = candidates[order][same]
    fates[copies] = EXACT_DUPLICATE
    return list(zip(copies.tolist(), first[same].tolist(), strict=True))


def _near(files: _SignedPieces, fates: np.ndarray, hygiene: Hygiene) -> Iterator[tuple[int, int, float]]:
    """(copy, kept document, similarity) of every near copy, in order; marks them in `fates`."""
    signer = _signer(hygiene)
    index, kept = signer.index(), {}
    for document, signature in files.signatures(_suspects(files, fates, signer.bands)):
        minhash = signer.minhash(signature)
        best = max(((int((kept[other] == signature).sum()), -other) for other in index.query(minhash)), default=(0, 0))
        if best[0] >= hygiene.near_duplicates * hygiene.permutations:
            fates[document] = NEAR_DUPLICATE
            yield document, -best[1], best[0] / hygiene.permutations
        else:
            index.insert(document, minhash)
            kept[document] = signature


def _suspects(files: _SignedPieces, fates: np.ndarray, bands: int) -> np.ndarray:
    """Documents still kept that share a bucket with another, ascending: all others have no near copy that bands could
    find.
    """
    candidates, suspected = fates == KEPT, np.zeros(len(fates), bool)
    for band in range(bands):
        hashes = np.concatenate([part[band] for _, part in files.each("bands")] or [np.empty(0, np.uint64)])
        _, group, counts = np.unique(hashes[candidates], return_inverse=True, return_counts=True)
        suspected[np.flatnonzero(candidates)[counts[group] > 1]] = True
    return np.flatnonzero(suspected)


def report_lines(items: Sequence[Any]) -> Iterator[bytes]:
    """Copies or overlaps as JSON Lines."""
    for item in items:
        yield (json.dumps(vars(item), sort_keys=True, ensure_ascii=False) + "\n").encode()
