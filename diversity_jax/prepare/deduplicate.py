"""Finds copies among documents: exact ones by digest, near ones by MinHash signatures and locality-sensitive hashing.

Documents are compared in the order of the corpus, and the first of several copies is kept: a document is left out if,
and only if, an earlier document that is kept has the same text or a signature at least `near_duplicates` similar.
Candidates come from `datasketch.MinHashLSH`; each is verified by the similarity of the complete signatures.

Memory: 24 bytes a document while one band at a time is searched for shared buckets, then about 4 KB for every document
that shares one.
"""

from collections.abc import Iterator, Mapping, Sequence
import copy
from dataclasses import dataclass
import functools
import hashlib
from importlib.metadata import version
import io
from typing import Any

import numpy as np

from diversity_jax.core.files import join_path, open_file, read_json, write_json, writing
from diversity_jax.core.words import words
from diversity_jax.prepare.chunks import DocumentStatus, Done, screen
from diversity_jax.prepare.config import Filtering
from diversity_jax.prepare.decontaminate import Overlap, hash_runs, windows
from diversity_jax.prepare.packing import Chunk, Job

_CACHED_WORDS = 200_000
_SCHEME = "affine32"  # of datasketch's permutations; named, so that a new default cannot change signatures on disk
SIGNATURE_VERSION = f"minhash-{_SCHEME}-2 icu4py-{version('icu4py')}"
"""Identifies how words and signatures are computed: signatures of different versions must not be compared."""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A document that is left out, the earlier one it is a copy of, and how similar they are (1 for an exact copy)."""

    document: str
    copy_of: str
    kind: str
    similarity: float


class MinHasher:
    """Computes MinHash signatures of texts and their LSH bands, the same in every process.

    Args:
      threshold: similarity from which two texts are near copies; determines the bands.
      permutations: numbers in a signature.
      shingle_words: texts are compared as sets of shingles of so many words.
    """

    def __init__(self, threshold: float, *, permutations: int = 128, shingle_words: int = 5):
        from datasketch import MinHash, MinHashLSH

        self.threshold, self.permutations, self._shingle_words = threshold, permutations, shingle_words
        self._word_hashes: dict[str, int] = {}
        self._empty = MinHash(permutations, seed=1, hashfunc=int, scheme=_SCHEME)
        try:
            lsh = MinHashLSH(threshold=threshold, num_perm=permutations, weights=(0.1, 0.9))
            self.bands, self._band_rows = lsh.b, lsh.r
        except ValueError:  # the optimum is one band, which datasketch refuses
            self.bands, self._band_rows = 2, permutations // 2

    def signature(self, text: str) -> np.ndarray:
        """The signature, uint32 [permutations], of the text's shingles; of all its words if they are fewer than one
        shingle; of the stripped text if it has no word.
        """
        hashes = self._hashed_words(words(text) or [text.strip()])
        shingles = windows(hashes, min(self._shingle_words, max(1, len(hashes))))
        minhash = copy.copy(self._empty)  # its own copy() checks all permutations again
        minhash.update_batch(np.unique(shingles >> np.uint64(32)).tolist())
        return minhash.hashvalues.astype(np.uint32)

    def band_hashes(self, signatures: np.ndarray) -> np.ndarray:
        """A hash of each band: uint64 [bands, documents] of signatures uint32 [documents, permutations]."""
        bands = np.split(signatures[:, : self.bands * self._band_rows].astype(np.uint64), self.bands, axis=1)
        return np.stack([hash_runs(band) for band in bands])

    def _hashed_words(self, text_words: Sequence[str]) -> np.ndarray:
        if len(self._word_hashes) > _CACHED_WORDS:
            self._word_hashes = {}  # not cleared: another thread of a Beam worker may be reading it
        known = self._word_hashes
        for word in set(text_words).difference(known):
            known[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        return np.fromiter(map(known.__getitem__, text_words), np.uint64, len(text_words))

    def as_minhash(self, signature: np.ndarray) -> Any:
        """The signature as datasketch represents it."""
        minhash = copy.copy(self._empty)
        minhash.hashvalues = signature.astype(minhash.hashvalues.dtype)
        return minhash


class NearDuplicateIndex:
    """An index of the signatures of documents that are kept, to find near copies among them."""

    def __init__(self, hasher: MinHasher):
        from datasketch import MinHashLSH

        self._hasher, self._signatures = hasher, dict[int, np.ndarray]()
        self._lsh = MinHashLSH(num_perm=hasher.permutations, params=(hasher.bands, hasher._band_rows))

    def __len__(self) -> int:
        return len(self._signatures)

    def add(self, document: int, signature: np.ndarray) -> None:
        """Adds a document; its number must be new."""
        self._lsh.insert(document, self._hasher.as_minhash(signature))
        self._signatures[document] = signature

    def near(self, signature: np.ndarray) -> tuple[int, float] | None:
        """The most similar document at or above the threshold and its similarity, the first of equals; or None."""
        candidates = self._lsh.query(self._hasher.as_minhash(signature))
        equal = {document: int((self._signatures[document] == signature).sum()) for document in candidates}
        best = min(equal, key=lambda document: (-equal[document], document), default=None)
        if best is None or equal[best] < self._hasher.threshold * self._hasher.permutations:
            return None
        return best, equal[best] / self._hasher.permutations


@functools.lru_cache(maxsize=4)
def _hasher(filtering: Filtering) -> MinHasher:
    assert filtering.near_duplicates is not None
    return MinHasher(
        filtering.near_duplicates, permutations=filtering.permutations, shingle_words=filtering.shingle_words
    )


def sign_chunk(job: Job, chunk: Chunk) -> Done:
    """Writes digests, signatures, ids and statuses of a chunk's documents, to compare them with all others."""
    statuses, overlaps = screen(job, chunk)
    arrays: dict[str, Any] = {
        "statuses": statuses,
        "digests": np.array([hashlib.blake2b(text.encode(), digest_size=16).digest() for text in chunk.texts], "V16"),
        "ids": np.frombuffer("\n".join(chunk.ids).encode(), np.uint8),
    }
    if job.settings.hygiene.near_duplicates is not None:
        hasher = _hasher(job.settings.hygiene)
        signatures = np.stack([hasher.signature(text) for text in chunk.texts])
        arrays |= {"signatures": signatures, "bands": hasher.band_hashes(signatures)}
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    data = buffer.getvalue()
    with writing(join_path(job.staging_dir, f"{chunk.name}.signatures")) as file:
        file.write(data)
    sha256, shared = hashlib.sha256(data).hexdigest(), [vars(overlap) for overlap in overlaps]
    record = {"name": chunk.name, "sha256": sha256, "overlaps": shared}
    write_json(join_path(job.staging_dir, f"{chunk.name}.signatures.json"), record)
    return Done(len(chunk.texts), sum(map(len, chunk.texts)), 0)


def read_overlaps(job: Job, chunk: str) -> list[Overlap]:
    """Overlaps with benchmarks that were found when a chunk was signed."""
    record = read_json(join_path(job.staging_dir, f"{chunk}.signatures.json"))
    return [Overlap(**overlap) for overlap in record["overlaps"]]


def find_copies(job: Job, chunks: Sequence[str]) -> tuple[Mapping[str, np.ndarray], list[Copy]]:
    """`DocumentStatus` of each document, uint8 [documents] by chunk, and the copies left out.

    Args:
      chunks: names of all signed chunks, in the order of the corpus.
    """
    signed, filtering = _SignedChunks(job, chunks), job.settings.hygiene
    statuses = signed.concatenated("statuses", np.uint8)
    copies = [(i, origin, "exact", 1.0) for i, origin in _exact_copies(signed, statuses)]
    if filtering.near_duplicates is not None:
        near = _near_copies(signed, statuses, _hasher(filtering))
        copies += [(i, origin, "near", similarity) for i, origin, similarity in near]
    ids = signed.ids({number for i, origin, _, _ in copies for number in (i, origin)})
    left_out = [
        Copy(document=ids[i], copy_of=ids[origin], kind=kind, similarity=similarity)
        for i, origin, kind, similarity in sorted(copies)
    ]
    return dict(zip(chunks, np.split(statuses, signed.starts[1:-1]), strict=True)) if chunks else {}, left_out


class _SignedChunks:
    """Reads the signature files of all chunks; documents are numbered over all chunks.

    Attributes:
      starts: number of each chunk's first document, and the number of documents last, int64 [chunks + 1].
    """

    def __init__(self, job: Job, chunks: Sequence[str]):
        self._job, self._chunks = job, chunks
        self.starts = np.cumsum([0, *(len(self._load(number, "statuses")) for number in range(len(chunks)))])

    def _load(self, number: int, array: str) -> np.ndarray:
        with open_file(join_path(self._job.staging_dir, f"{self._chunks[number]}.signatures")) as file:
            return np.load(file)[array]

    def concatenated(self, array: str, dtype: Any, row: int | None = None) -> np.ndarray:
        """An array of all documents; `row`: of `bands`, the row of one band."""
        parts = (self._load(number, array) for number in range(len(self._chunks)))
        return np.concatenate([np.empty(0, dtype), *(part if row is None else part[row] for part in parts)])

    def _by_chunk(self, documents: np.ndarray) -> Iterator[tuple[int, list[int]]]:
        """(chunk, documents in it) of ascending documents."""
        edges = np.searchsorted(documents, self.starts)
        for number in np.flatnonzero(np.diff(edges)).tolist():
            yield number, documents[edges[number] : edges[number + 1]].tolist()

    def signatures(self, documents: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """(document, signature) of ascending documents, a chunk at a time in memory."""
        for number, members in self._by_chunk(documents):
            signatures = self._load(number, "signatures")
            for document in members:
                yield document, signatures[document - self.starts[number]].copy()  # a view would keep the whole chunk

    def ids(self, documents: set[int]) -> dict[int, str]:
        """Ids of some documents."""
        ids = {}
        for number, members in self._by_chunk(np.array(sorted(documents), np.int64)):
            names = self._load(number, "ids").tobytes().decode().split("\n")
            ids.update({document: names[document - int(self.starts[number])] for document in members})
        return ids


def _exact_copies(signed: _SignedChunks, statuses: np.ndarray) -> list[tuple[int, int]]:
    """(copy, first document of the same text) of every exact copy; sets the copies' statuses."""
    candidates = np.flatnonzero(statuses == DocumentStatus.KEPT)
    pairs = signed.concatenated("digests", "V16")[candidates].view("<u8").reshape(-1, 2)
    order = np.lexsort((candidates, pairs[:, 1], pairs[:, 0]))
    same = np.append(False, (pairs[order[1:]] == pairs[order[:-1]]).all(1)) if len(order) else np.empty(0, bool)
    first = candidates[order][np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))]
    copies = candidates[order][same]
    statuses[copies] = DocumentStatus.EXACT_DUPLICATE
    return list(zip(copies.tolist(), first[same].tolist(), strict=True))


def _near_copies(signed: _SignedChunks, statuses: np.ndarray, hasher: MinHasher) -> Iterator[tuple[int, int, float]]:
    """(copy, document kept, similarity) of every near copy, in order; sets the copies' statuses."""
    index = NearDuplicateIndex(hasher)
    for document, signature in signed.signatures(_suspects(signed, statuses, hasher.bands)):
        near = index.near(signature)
        if near is None:
            index.add(document, signature)
        else:
            statuses[document] = DocumentStatus.NEAR_DUPLICATE
            yield document, *near


def _suspects(signed: _SignedChunks, statuses: np.ndarray, bands: int) -> np.ndarray:
    """Documents still kept that share a bucket with another, ascending: LSH finds near copies only among these."""
    candidates, suspected = statuses == DocumentStatus.KEPT, np.zeros(len(statuses), bool)
    for band in range(bands):
        hashes = signed.concatenated("bands", np.uint64, band)
        _, group, counts = np.unique(hashes[candidates], return_inverse=True, return_counts=True)
        suspected[np.flatnonzero(candidates)[counts[group] > 1]] = True
    return np.flatnonzero(suspected)
