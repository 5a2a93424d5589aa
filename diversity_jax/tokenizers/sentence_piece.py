"""SentencePiece models: as tokenizers, trained on text, and converted to a `tokenizer.json` with the same ids."""

from collections.abc import Iterable, Mapping, Sequence
import json
import os
from pathlib import Path
import re
from typing import Any

from diversity_jax.core.errors import InputError
from diversity_jax.core.files import content_hash, file_hash, open_file, writing
from diversity_jax.core.stores import is_remote
from diversity_jax.tokenizers.base import Tokenizer
from diversity_jax.tokenizers.settings import TokenizerSettings, folder_end

_SPACE = "\u2581"
_CLASSES = (None, "LlamaTokenizer", "CodeLlamaTokenizer", "GemmaTokenizer", "T5Tokenizer")
"""Classes of transformers whose ids are the model's own; others shift them."""
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = range(1, 5)


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model; documents end with its `</s>` unless the folder's settings, or a caller, name another end.

    `_inner` encodes texts after a special token, which `legacy: false` gives no space in front.
    """

    kind = reference_library = "sentencepiece"

    def __init__(self, path: str, end_of_text: str | int | None = None, settings: TokenizerSettings | None = None):
        import sentencepiece

        settings = settings or TokenizerSettings()
        if settings.class_name not in _CLASSES:
            raise InputError(
                f"vocabulary {path}: {settings.class_name} gives pieces other ids than the model does; save it with "
                "transformers, which adds a tokenizer.json"
            )
        proto, changes = read_model(path), []
        if settings.prefix_space not in (None, proto.normalizer_spec.add_dummy_prefix):
            proto.normalizer_spec.add_dummy_prefix = settings.prefix_space
            changes = [["add_dummy_prefix", settings.prefix_space]]
        self.model_proto, self.legacy = proto.SerializeToString(), settings.legacy
        self._model, self._inner = sentencepiece.SentencePieceProcessor(model_proto=self.model_proto), None
        if not self.legacy:
            proto.normalizer_spec.add_dummy_prefix = False
            self._inner = sentencepiece.SentencePieceProcessor(model_proto=proto.SerializeToString())
        self.size = self._model.get_piece_size()
        pieces = [(piece.piece, number) for number, piece in enumerate(proto.pieces)]
        self.special_ids = {text: i for text, i in pieces if self._model.is_control(i) or self._model.is_unknown(i)}
        self.end_of_text_id = self._end_of_text(path, end_of_text, settings)
        self.ends_with_eos = self.end_of_text_id == self._model.eos_id()
        own = self._model.bos_id() if self._model.bos_id() >= 0 else None
        self.bos_id = self.token_id(settings.special["bos_token"]) if "bos_token" in settings.special else own
        self.adds_bos = settings.class_adds_bos and self.bos_id is not None
        self.adds_eos = bool(settings.adds_eos)
        known = {name: text for name, text in settings.special.items() if self.token_id(text) is not None}
        self.special = {"eos_token": self.token_text(self.end_of_text_id)} | known
        if self.bos_id is not None:
            self.special["bos_token"] = self.token_text(self.bos_id)
        self.files = (path, *settings.files)
        self.hash = content_hash([self.kind, file_hash(path), self.end_of_text_id, *changes])

    def _end_of_text(self, path: str, asked: str | int | None, settings: TokenizerSettings) -> int:
        if asked is None and ("eos_token" in settings.special or settings.end_ids):
            return folder_end(path, self, settings)
        end_id = self._model.eos_id() if asked is None else asked if isinstance(asked, int) else self.token_id(asked)
        if end_id is None or not 0 <= end_id < self.size:
            raise InputError(
                f"vocabulary {path}: has no piece {'</s>' if asked is None else asked!r}; name one as end_of_text"
            )
        return end_id

    def fast_content(self) -> str | None:
        content = to_tokenizer_json(self.model_proto, legacy=self.legacy)
        return None if content is None else json.dumps(content)

    def _encode_plain(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        return self._model.encode(list(texts), num_threads=os.cpu_count())

    def _encode_inner(self, texts: Sequence[str]) -> Sequence[Sequence[int]]:
        return self._encode_plain(texts) if self._inner is None else self._inner.encode(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        return self._model.decode([int(i) for i in ids if i != self.end_of_text_id])

    def token_id(self, token: str) -> int | None:
        number = self._model.piece_to_id(token)
        return number if self._model.id_to_piece(number) == token else None

    def token_text(self, number: int) -> str:
        return self._model.id_to_piece(number)

    def token_bytes(self) -> list[bytes | None]:
        """The bytes that each piece adds to a text; None for control, unknown and unused pieces."""
        model = self._model

        def text_of(i: int) -> bytes | None:
            if model.is_control(i) or model.is_unknown(i) or model.is_unused(i):
                return None
            piece = model.id_to_piece(i)
            return bytes([int(piece[1:-1], 16)]) if model.is_byte(i) else piece.replace(_SPACE, " ").encode()

        return [text_of(i) for i in range(self.size)]


def read_model(path: str) -> Any:
    """A SentencePiece model as its protocol buffer.

    Raises:
      InputError: no such file, or it is no such model.
    """
    from google.protobuf.message import DecodeError
    import sentencepiece
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    with open_file(path) as file:
        data = file.read()
    try:
        proto.ParseFromString(data)
        sentencepiece.SentencePieceProcessor(model_proto=data)
    except (DecodeError, RuntimeError, UnicodeDecodeError):
        raise InputError(f"vocabulary {path}: is not a SentencePiece model") from None
    if not proto.pieces:  # an empty file is such a model, too, and using it would crash the process
        raise InputError(f"vocabulary {path}: is a SentencePiece model without pieces; fetch it again")
    return proto


def to_tokenizer_json(
    model_proto: bytes, *, legacy: bool = True, renamed: Mapping[int, str] | None = None
) -> dict[str, Any] | None:
    """The content of a `tokenizer.json` for the model, as transformers converts it; None: it cannot be converted.

    The caller must check that both give the same ids.

    Args:
      model_proto: the model's bytes.
      legacy: a space is put before every text between special tokens, as in SentencePiece; else only before the first
        of them, and not if that begins with a space.
      renamed: other texts of pieces, by id.
    """
    from sentencepiece import sentencepiece_model_pb2
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model_proto)
    trained, spec, names = proto.trainer_spec, proto.normalizer_spec, renamed or {}
    if trained.model_type not in (trained.BPE, trained.UNIGRAM) or trained.treat_whitespace_as_suffix:
        return None
    texts = [names.get(number, piece.piece) for number, piece in enumerate(proto.pieces)]
    if len(set(texts)) < len(texts) or not spec.escape_whitespaces:
        return None
    own = [text for text, piece in zip(texts, proto.pieces, strict=True) if piece.type == _USER_DEFINED]
    tokenizer = Tokenizer(_model(proto, texts, ignore_merges=bool(own)))
    steps: list[Any] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix and legacy:
        steps.append(normalizers.Prepend(_SPACE))
    if legacy or not spec.add_dummy_prefix:
        steps.append(normalizers.Replace(" ", _SPACE))
    splits: list[Any] = []
    if spec.add_dummy_prefix and not legacy:
        splits.append(pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="first", split=False))
    if own:  # user-defined pieces are never split, nor part of a merge
        pattern = "|".join(map(re.escape, sorted(own, key=len, reverse=True)))
        splits.append(pre_tokenizers.Split(Regex(pattern), "isolated"))
    if steps:
        tokenizer.normalizer = normalizers.Sequence(steps)
    if splits:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(splits)
    stripped = [decoders.Strip(content=" ", left=1, right=0)] if spec.add_dummy_prefix else []
    spaces = decoders.Replace(_SPACE, " ")
    tokenizer.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), *stripped])
    special = [text for text, piece in zip(texts, proto.pieces, strict=True) if piece.type in (_UNKNOWN, _CONTROL)]
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    return json.loads(tokenizer.to_str())


def _model(proto: Any, texts: Sequence[str], *, ignore_merges: bool) -> Any:
    from tokenizers import models

    trained, pieces = proto.trainer_spec, proto.pieces
    unknown = next((number for number, piece in enumerate(pieces) if piece.type == _UNKNOWN), 0)
    if trained.model_type == trained.UNIGRAM:
        scored = [(text, piece.score) for text, piece in zip(texts, pieces, strict=True)]
        return models.Unigram(scored, unk_id=unknown, byte_fallback=trained.byte_fallback)
    normal = {text: piece.score for text, piece in zip(texts, pieces, strict=True) if piece.type == _NORMAL}
    order = {text: number for number, text in enumerate(texts)}
    merges = [
        (-score, order[text], order[text[:at]], order[text[at:]], text[:at], text[at:])
        for text, score in normal.items()
        for at in range(1, len(text))
        if text[:at] in normal and text[at:] in normal
    ]
    return models.BPE(
        vocab=order,
        merges=[merge[-2:] for merge in sorted(merges)],
        unk_token=texts[unknown],
        fuse_unk=True,
        byte_fallback=trained.byte_fallback,
        ignore_merges=ignore_merges,
    )


_LINE_BYTES = 4096  # texts are cut to this length in UTF-8; SentencePiece skips sentences beyond its maximum


def train_tokenizer(texts: Iterable[str], path: str | Path, *, vocab_size: int, model_type: str = "bpe") -> Path | str:
    """Trains a SentencePiece model with byte fallback, digits apart and white space kept, and writes it to `path`.

    Args:
      texts: what it is trained on; read once.
      path: ends in `.model`.
      vocab_size: number of pieces, with `<unk>`, `<s>`, `</s>` and 256 bytes among them.
      model_type: `bpe` or `unigram`.

    Raises:
      InputError: `path` has another ending, or the text is too little for so many pieces.
    """
    import sentencepiece

    characters = _LINE_BYTES // 4
    if not os.fspath(path).endswith(".model"):
        raise InputError(f"{path}: a SentencePiece model's name ends in .model; rename the output")
    lines = (text[start : start + characters] for text in texts for start in range(0, len(text), characters))
    with writing(path) as out:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=lines,
                model_writer=out,
                vocab_size=vocab_size,
                model_type=model_type,
                character_coverage=0.9995,
                byte_fallback=True,
                split_digits=True,
                allow_whitespace_only_pieces=True,
                remove_extra_whitespaces=False,
                normalization_rule_name="identity",
                max_sentence_length=4 * _LINE_BYTES,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise InputError(f"vocab_size={vocab_size}: SentencePiece refuses ({reason})") from None
    return path if is_remote(path) else Path(path)
