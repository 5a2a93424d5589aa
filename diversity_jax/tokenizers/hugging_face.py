"""Tokenizers of the `tokenizers` library: a `tokenizer.json`, or `vocab.json` with `merges.txt`, with their folder's
settings, as in transformers."""

from collections.abc import Mapping, Sequence
import copy
import functools
import itertools
import json
import logging
import threading
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, file_hash, open_file, read_json
from diversity_jax.tokenizers.base import Tokenizer, has_breaks, without_breaks
from diversity_jax.tokenizers.settings import END_OF_TEXT_NAMES, TokenizerSettings, folder_end

log = logging.getLogger(__name__)

BEGIN_OF_TEXT_NAMES = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>", "[BOS]")
_NONCHARACTER = "\ufdd1"  # of Unicode; does not occur in text
# Whether special tokens are recognised is a setting of the library's tokenizer, not of a call.
_ENCODING = threading.Lock()
# From the code of Qwen's class: contractions, letters with one character before them, digits, punctuation, spaces.
_QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_MERGES_CLASSES = (None, "GPT2Tokenizer", "CodeGenTokenizer", "Qwen2Tokenizer")


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the `tokenizers` library.

    Args:
      source: the content of a `tokenizer.json`, if that is not in `files`.
    """

    kind = "huggingface"
    reference_library = "tokenizers"

    def __init__(
        self,
        files: tuple[str, ...],
        end_of_text: str | int | None = None,
        settings: TokenizerSettings | None = None,
        source: Mapping[str, Any] | None = None,
    ):
        settings = settings or TokenizerSettings()
        self._tokenizer, changes, self._content = _open(files, settings, source)
        tokens = self._tokenizer.get_added_tokens_decoder()
        self.special_ids: dict[str, int] = {
            token.content: number for number, token in sorted(tokens.items()) if token.special
        }
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        self.end_of_text_id = self._end_of_text(files[0], end_of_text, settings)
        if (end := self.token_text(self.end_of_text_id)) in END_OF_TEXT_NAMES and end not in self.special_ids:
            self._tokenizer.add_special_tokens([end])  # a vocab.json does not say which of its tokens are special
            self._content = None
            self.special_ids[end] = self.end_of_text_id
        before, after = self.own_surrounding_ids()
        self.bos_id = self._begin_of_text(before, settings)
        adds_bos = bool(before) or settings.class_adds_bos if settings.adds_bos is None else settings.adds_bos
        self.adds_bos = adds_bos and self.bos_id is not None
        has_processor = source is None and len(files) == 1  # a tokenizer.json, not made from other files
        if settings.files and has_processor and self.adds_bos != bool(before):
            log.warning(
                "%s: puts %s before a text, its folder's settings %s; the settings are followed, as transformers 4 "
                "does for Llama's classes (transformers 5 follows the file)",
                *(files[0], "begin-of-text" if before else "nothing", "begin-of-text" if self.adds_bos else "nothing"),
            )
        self.adds_eos = bool(after) if settings.adds_eos is None else settings.adds_eos
        known = {name: text for name, text in settings.special.items() if self.token_id(text) is not None}
        begin = {} if self.bos_id is None else {"bos_token": self.token_text(self.bos_id)}
        self.special = {**begin, **known, "eos_token": self.token_text(self.end_of_text_id)}
        self.files = (*files, *settings.files)
        self.hash = content_hash([self.kind, *map(file_hash, files), self.end_of_text_id, *changes])
        self._copy: Any = None  # see `_plain_copy`
        # Whether the library recognises special tokens although it should not, so that `_plain_copy` is needed.
        self._leaks = any(number in self._encode([text], special=False)[0] for text, number in self.special_ids.items())

    def _end_of_text(self, path: str, asked: str | int | None, settings: TokenizerSettings) -> int:
        """The id that the caller names; else the folder's; else that of a token with a usual name."""
        if isinstance(asked, int) and not 0 <= asked < self.size:
            raise InputError(f"vocabulary {path}: end_of_text {asked} is beyond its {self.size:,} ids")
        if asked is not None:
            end_id = asked if isinstance(asked, int) else self.token_id(asked)
            if end_id is None:
                raise InputError(f"vocabulary {path}: has no token {asked!r}; name another as end_of_text")
            return end_id
        return folder_end(path, self, settings) if settings.files or settings.end_ids else self._usual_end(path)

    def _usual_end(self, path: str) -> int:
        ids = [i for i in map(self.token_id, END_OF_TEXT_NAMES) if i is not None]
        if not ids:
            raise InputError(
                f"vocabulary {path}: has none of {', '.join(END_OF_TEXT_NAMES)}; name a token as end_of_text"
            )
        return ids[0]

    def _begin_of_text(self, before: Sequence[int], settings: TokenizerSettings) -> int | None:
        if "bos_token" in settings.special:
            return self.token_id(settings.special["bos_token"])
        if settings.has_no_bos and not before:
            return None
        usual = (i for i in map(self.special_ids.get, BEGIN_OF_TEXT_NAMES) if i is not None)
        config = settings.bos_id if settings.bos_id is not None and settings.bos_id < self.size else None
        return before[0] if before else config if config is not None else next(usual, None)

    def without_ids_from(self, count: int) -> Tokenizer:
        if self.size <= count:
            return self
        added = self._tokenizer.get_added_tokens_decoder()
        beyond = {number: token.content for number, token in added.items() if number >= count}
        own = max(self._tokenizer.get_vocab(with_added_tokens=False).values())
        used = {self.end_of_text_id, *itertools.chain(*self.surrounding_ids())}
        if own >= count or used & beyond.keys() or not set(beyond.values()) <= self.special_ids.keys():
            return self
        texts = ", ".join(beyond.values())[:200]
        log.warning("%s: the model has no ids for these special tokens, read as letters: %s", self.files[0], texts)
        content = json.loads(self._tokenizer.to_str())
        content["added_tokens"] = [token for token in content["added_tokens"] if token["id"] < count]
        fitted = copy.copy(self)
        for cached in ("encoders", "_special_pattern"):
            vars(fitted).pop(cached, None)
        fitted._tokenizer = type(self._tokenizer).from_str(json.dumps(content))
        fitted._content = fitted._copy = None
        fitted.size = max(own, *(number for number in added if number < count), 0) + 1
        fitted.bos_id = None if self.bos_id in beyond else self.bos_id
        fitted.special_ids = {text: number for text, number in self.special_ids.items() if number < count}
        fitted.special = {name: text for name, text in self.special.items() if text not in beyond.values()}
        return fitted

    def own_surrounding_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the file's own post-processor puts before and after every text."""
        plain, extended = (self._tokenizer.encode("a", add_special_tokens=added).ids for added in (False, True))
        start = next((i for i in range(len(extended)) if extended[i : i + len(plain)] == plain), 0)
        return tuple(extended[:start]), tuple(extended[start + len(plain) :])

    def surrounding_ids(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        before, after = self.own_surrounding_ids()
        own_bos = bool(before) and before[0] == self.bos_id
        if self.adds_bos != own_bos:
            assert self.bos_id is not None or not self.adds_bos
            before = (self.bos_id, *before) if self.adds_bos and self.bos_id is not None else before[1:]
        if self.adds_eos != bool(after):
            after = (self.end_of_text_id,) if self.adds_eos else ()
        return before, after

    def fast_content(self) -> str:
        if self._leaks:
            return self._plain_copy()[0].to_str()
        content, self._content = self._content, None  # needed once; megabytes in every process
        return content or self._tokenizer.to_str()  # the library writes merges in a form that is slower to read

    def _encode_plain(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        if not self._leaks:
            return self._encode(texts, special=False)
        return self._ids(self._plain_copy()[0], texts)

    def _encode_special(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        """By the library, which handles spaces around special tokens; texts with breaks by `_plain_copy`."""
        if not any(map(has_breaks, texts)):
            return self._encode(texts, special=True)
        (renamer, ids), split = self._plain_copy(), self._special_pattern
        assert split is not None  # or no text would have breaks
        renamed = [split.sub(lambda match: _hidden_name(self.special_ids[match.group()]), text) for text in texts]
        return [[ids.get(i, i) for i in row] for row in self._ids(renamer, [without_breaks(text) for text in renamed])]

    def _encode(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        with _ENCODING:
            self._tokenizer.encode_special_tokens = not special  # True: encode them as text
            return self._ids(self._tokenizer, texts)

    def _ids(self, tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
        try:
            return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException as error:  # a panic of the library, such as of a regular expression that gives up
            reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
            raise InputError(
                f"{self.files[0]}: its own rules fail on a text ({reason}); take another tokenizer"
            ) from None

    def _plain_copy(self) -> tuple[Any, dict[int, int]]:
        """A copy whose special tokens have names that do not occur in text, and the ids of these by the copy's ids.

        A vocabulary that contains special tokens' texts as tokens, as unigram models do, would find them in any text.
        """
        if self._copy is None:
            import tokenizers

            data = json.loads(self._tokenizer.to_str()) | {"post_processor": None}
            names = {text: _hidden_name(number) for text, number in self.special_ids.items()}
            vocab = data["model"]["vocab"]
            own = dict(vocab) if isinstance(vocab, list) else vocab
            # Last, since renamed ones may have to be added behind the others, whose ids are given out in this order.
            data["added_tokens"].sort(key=lambda token: token["content"] in own)
            for token in data["added_tokens"]:
                token["content"] = names.get(token["content"], token["content"])
            hidden = dict(data["model"])
            if isinstance(vocab, list):
                hidden["vocab"] = [[names.get(text, text), score] for text, score in vocab]
            else:
                hidden["vocab"] = {names.get(text, text): number for text, number in vocab.items()}
                hidden["unk_token"] = names.get(str(hidden.get("unk_token")), hidden.get("unk_token"))
            try:
                copy = tokenizers.Tokenizer.from_str(json.dumps(data | {"model": hidden}))
            except Exception:  # merges make such a text, which must then stay in the vocabulary
                copy = tokenizers.Tokenizer.from_str(json.dumps(data))
            ids = {copy.token_to_id(_hidden_name(number)): number for number in self.special_ids.values()}
            self._copy = copy, ids
        return self._copy

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids if i != self.end_of_text_id], skip_special_tokens=False)

    def token_id(self, token: str) -> int | None:
        number = self.special_ids.get(token)
        return self._tokenizer.token_to_id(token) if number is None else number

    def token_text(self, number: int) -> str:
        added = self._tokenizer.get_added_tokens_decoder().get(number)
        # `id_to_token` of the library returns a normalised form of some added tokens.
        return added.content if added else self._tokenizer.id_to_token(number) or ""

    def to_json(self) -> str:
        """The content of a `tokenizer.json`."""
        return self._tokenizer.to_str()


def _hidden_name(number: int) -> str:
    return f"{_NONCHARACTER}{number}{_NONCHARACTER}"


def _open(
    files: tuple[str, ...], settings: TokenizerSettings, source: Mapping[str, Any] | None
) -> tuple[Any, list[Any], str | None]:
    """The library's tokenizer, how the settings change it, and the content of the `tokenizer.json` if nothing does."""
    import tokenizers

    content = None
    try:
        if source is not None:
            tokenizer = tokenizers.Tokenizer.from_str(json.dumps(source))
        elif len(files) == 2:
            tokenizer = _byte_level(*files, settings)
        else:
            with open_file(files[0]) as file:
                content = file.read().decode()
            tokenizer = tokenizers.Tokenizer.from_str(content)
        read, added = tokenizer, tokenizer.get_added_tokens_decoder().keys()
        tokenizer, changes = _with_settings(tokenizer, settings, files[0])
        if changes or tokenizer is not read or tokenizer.get_added_tokens_decoder().keys() != added:
            content = None
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception for every fault of a file
        reason = str(error).splitlines()[0]
        raise InputError(f"vocabulary {files[0]}: is not a Hugging Face tokenizer ({reason})") from None
    for number, token in settings.added.items():
        if tokenizer.token_to_id(token["content"]) != number:
            raise InputError(
                f"vocabulary {files[0]}: its settings give the added token {token['content']!r} the id {number}, but "
                f"{tokenizer.token_to_id(token['content'])} is next; they belong to another tokenizer"
            )
    _check_surrounding_ids(tokenizer, files[0])
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if len(files) == 2 and settings.class_name == "Qwen2Tokenizer":
        changes = [settings.class_name, *changes]
    return tokenizer, changes, content


def _check_surrounding_ids(tokenizer: Any, path: str) -> None:
    """Refuses a post-processor with ids of another vocabulary, as transformers 5.24 leaves Llama 3's when it retrains.

    Raises:
      InputError: it adds a token by an id that is not in the vocabulary, or is another token's.
    """
    own = json.loads(tokenizer.post_processor.__getstate__()) if tokenizer.post_processor else {}
    for processor in own.get("processors", [own]):
        pairs = [processor[name] for name in ("cls", "sep") if name in processor]
        for added in processor.get("special_tokens", {}).values():
            pairs += zip(added["tokens"], added["ids"], strict=True)
        for text, number in pairs:
            # A token of the template may have been renamed since; its id is then another text's, and right.
            if tokenizer.token_to_id(text) not in (None, number) or tokenizer.id_to_token(number) is None:
                raise InputError(
                    f"vocabulary {path}: its post-processor adds {text!r} as id {number}, but that token has the id "
                    f"{tokenizer.token_to_id(text)}; correct the id in its post_processor"
                )


def _with_settings(tokenizer: Any, settings: TokenizerSettings, path: str) -> tuple[Any, list[Any]]:
    """The tokenizer with the settings, and those of them that change the ids of plain text."""
    from tokenizers import AddedToken, Tokenizer

    tokens = {number: _fields(token) for number, token in tokenizer.get_added_tokens_decoder().items()}
    merged = dict(tokens)
    for number, token in settings.added.items():
        own = tokens.get(number)
        if own and own["content"] != token["content"]:
            raise InputError(
                f"vocabulary {path}: id {number} is the added token {own['content']!r}, but "
                f"{token['content']!r} in its folder's settings; correct one of them"
            )
        merged[number] = {**(own or _DEFAULTS), **token}
    for text in settings.special.values():
        number = tokenizer.token_to_id(text)
        if number is not None:
            merged[number] = {**(merged.get(number) or {**_DEFAULTS, "content": text}), "special": True}
    vocab = functools.cache(functools.partial(tokenizer.get_vocab, with_added_tokens=False))

    def changes_text(number: int, token: Mapping[str, Any]) -> bool:
        own = tokens.get(number)
        if token["special"] and (own["special"] if own else token["content"] in vocab()):
            return False  # read as letters in plain text, with or without the settings
        return token != own

    changes: list[Any] = [[number, merged[number]] for number in sorted(merged) if changes_text(number, merged[number])]
    if tokenizer.normalizer is not None:
        # Else the library searches for the normalised "\u2581</s>", and reads "</s>" after a word as letters.
        merged = {
            i: token | {"normalized": token["normalized"] and not token["special"]} for i, token in merged.items()
        }
    prefix = _with_prefix_space(tokenizer, settings, path)
    if prefix is None and all(merged.get(number) == token for number, token in tokens.items()):
        new = [AddedToken(**token) for number, token in sorted(merged.items()) if number not in tokens]
        tokenizer.add_tokens(new)
        return tokenizer, changes
    data = json.loads(tokenizer.to_str())
    data["added_tokens"] = [{"id": number, **token} for number, token in sorted(merged.items())]
    if prefix is not None:
        data["pre_tokenizer"], changes = prefix, [*changes, prefix]
    return Tokenizer.from_str(json.dumps(data)), changes


_DEFAULTS = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}


def _fields(token: Any) -> dict[str, Any]:
    return {"content": token.content, **{name: getattr(token, name) for name in _DEFAULTS}}


def _with_prefix_space(tokenizer: Any, settings: TokenizerSettings, path: str) -> dict[str, Any] | None:
    """The pre-tokenizer with the settings' `add_prefix_space`; None if it agrees already.

    Raises:
      InputError: it does not, and is not byte-level BPE, which has this flag.
    """
    wanted = settings.prefix_space
    if wanted is None:
        return None
    data = json.loads(tokenizer.to_str())
    outer = data.get("pre_tokenizer") or {}
    parts = outer.get("pretokenizers", [outer])
    byte_level = next((part for part in parts if part.get("type") == "ByteLevel"), None)
    if byte_level is not None:
        if byte_level["add_prefix_space"] == wanted:
            return None
        byte_level["add_prefix_space"] = wanted
        return outer
    first, second = (tokenizer.encode(text, add_special_tokens=False).tokens[:1] for text in ("a", "b"))
    has = all(tokens and tokens[0].startswith("\u2581") for tokens in (first, second))
    if has != wanted:
        raise InputError(
            f"vocabulary {path}: its folder's settings have add_prefix_space {str(wanted).lower()}, its own file the "
            "opposite; save the tokenizer again with transformers, or correct one of them"
        )
    return None


def _byte_level(vocab: str, merges: str, settings: TokenizerSettings) -> Any:
    """`vocab.json` and `merges.txt`, as the class of transformers that the settings name reads them."""
    import tokenizers
    from tokenizers import decoders, models, normalizers, pre_tokenizers

    if settings.class_name not in _MERGES_CLASSES:
        known = ", ".join(filter(None, _MERGES_CLASSES))
        raise InputError(
            f"vocabulary {vocab}: is read by {settings.class_name}, whose word splitting is not supported "
            f"({known} are); save it with transformers, which adds a tokenizer.json"
        )
    with open_file(merges) as file:
        lines = file.read().decode().split("\n")
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    tokenizer = tokenizers.Tokenizer(models.BPE(vocab=read_json(vocab), merges=pairs))
    if settings.class_name == "Qwen2Tokenizer":
        tokenizer.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(tokenizers.Regex(_QWEN_WORDS), "isolated")
        bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, bytes_])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
