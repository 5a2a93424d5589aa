"""The exception for bad input, and text without secrets and control characters."""

import re

_LONG_WORD = re.compile(r"(\S{150})\S{150,}(\S{100})")
_BREAKS = re.compile(r"[\r\n\v\f\x85\u2028\u2029]+")
_USER = re.compile(r"(?<=://)[^/?#\s\"]*@")  # a password may hold `@`: the last one ends it
_PARAMETER = re.compile(r"([?&#][^=?&#\s]*=)([^&\s']+)")
_SECRET_NAME = re.compile("key|token|secret|sig|pass|pwd|credential|jwt|auth(?!or)", re.IGNORECASE)


def without_secrets(text: str) -> str:
    """A text without passwords and signatures in its URLs, to be shown, logged or written to a file."""
    return _PARAMETER.sub(_without_value, _USER.sub("", text)) if "://" in text else text


def _without_value(parameter: re.Match[str]) -> str:
    name, value = parameter.groups()
    ending = value[len(value.rstrip(":;,)")) :]  # of the sentence around
    return f"{name}***{ending}" if len(ending) < len(value) and _SECRET_NAME.search(name) else parameter[0]


class InputError(ValueError):
    """Bad input from outside: a path, a file's content, a setting, an answer of a server.

    The message is one line that says what is wrong, where (file and line, or configuration field) and what to do
    about it. Entry points print that line and exit with status 2; a traceback means a defect of this project. In the
    message, the middle of words of more than 400 characters and passwords in URLs are left out, and control characters
    are escaped.
    """

    def __str__(self) -> str:
        return without_secrets(_LONG_WORD.sub(r"\1...\2", _printable(_BREAKS.sub(" ", super().__str__()))))


def _printable(text: str) -> str:
    """The text with escapes such as `\\x07` for characters that are not printable."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)
