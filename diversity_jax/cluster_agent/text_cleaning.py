"""Cleaning of texts for prompts, of invisible characters and chat-template tokens; and seeded random choices."""

import hashlib
import random
import re

# Characters that models read and people do not see: zero-width characters, direction overrides and isolates, the tag
# block (which can encode sentences), variation selectors, soft hyphens, and control characters but tab and newline.
_INVISIBLE = re.compile(
    "[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f"
    "\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff9-\ufffb\U000e0000-\U000e0fff\ud800-\udfff]"
)
# Tokens of chat templates: <|im_start|>, <|eot_id|>, [INST], <<SYS>>, <start_of_turn>, <s>, ...
_TEMPLATE = re.compile(
    r"<\|[^<>|\n]{0,60}\|>|<\uff5c[^<>\n]{0,60}\uff5c>"
    r"|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]|<</?SYS>>"
    r"|</?(?:start_of_turn|end_of_turn|bos|eos|pad|unk|s|sys|system|assistant|user|human)>",
    re.IGNORECASE,
)
_SUSPICIOUS = re.compile(r"[^\n\t -;=?-Z\\-~]")  # all but printable ASCII without "<" and "["
_LINE_ENDS = re.compile("\r\n?|[\u2028\u2029\u0085]")


def clean_text(text: str, most_characters: int) -> str:
    """`text` without invisible characters and chat-template tokens, cut to `most_characters`.

    Tokens are removed until none is left, since removing one can form another. A long text is first cut to a little
    more than twice that, which allows for the characters removed.
    """
    if _SUSPICIOUS.search(text) is None:
        return text[:most_characters].strip()
    text = _INVISIBLE.sub("", _LINE_ENDS.sub("\n", text[: 2 * most_characters + 1000]))
    while (less := _TEMPLATE.sub("", text)) != text:
        text = less
    return text[:most_characters].strip()


_BRACKETS = str.maketrans("<>[]", "\u2039\u203a\uff3b\uff3d")
_TOKEN_BRACKETS = re.compile(r"[<>]|\[(?![\s\d\"\[\]{}-]|$)|\](?=[~!<])")  # all but those of JSON


def as_data(text: str, *, is_json: bool = False) -> str:
    """A text for a prompt that contains no special token of a tokenizer.

    The special tokens of all models known to us, for turns, thinking, tools, images and padding, contain `<` or `[`.
    These are replaced by other brackets, which people and models read alike.

    Args:
      is_json: leave the brackets of JSON lists, which are recognised by the characters next to them.
    """
    if is_json:
        return _TOKEN_BRACKETS.sub(lambda bracket: bracket[0].translate(_BRACKETS), text)
    return text.translate(_BRACKETS)


def child_seed(*parts: object) -> int:
    """A seed of 31 bits, the same function of its arguments on every machine."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def random_order(generator: random.Random, count: int) -> list[int]:
    """A random permutation of range(count), from `random()` alone, the one method that Python keeps unchanged."""
    keys = [generator.random() for _ in range(count)]
    return sorted(range(count), key=keys.__getitem__)


def random_ids(generator: random.Random, count: int) -> list[str]:
    """`count` different sample ids such as `k7f`."""
    letters, both = "abcdefghjkmnpqrstuvwxyz", "abcdefghjkmnpqrstuvwxyz23456789"
    ids: dict[str, None] = {}
    while len(ids) < count:
        first = letters[int(generator.random() * 23)]
        ids[first + "".join(both[int(generator.random() * 31)] for _ in range(2))] = None
    return list(ids)


def choose(generator: random.Random, count: int, of: int) -> list[int]:
    """`count` different numbers of range(of), in random order."""
    chosen: dict[int, None] = {}
    while len(chosen) < count:
        chosen[int(generator.random() * of)] = None
    return list(chosen)
