"""Text out of tokens as they come: whole characters only, ended at a stop text, and nothing shown that a stop text may still take back."""

from collections.abc import Callable, Sequence

_BROKEN = "\ufffd"  # what an unfinished character decodes to


class TextStream:
    """The text of one answer, growing.

    Args:
      decode: ids to text.
      stop: texts that end the answer and are left out of it.

    Attributes:
      text: everything so far; final once `stopped`, or after `finish`.
      stopped: a stop text has been met.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = ()):
        self._decode, self._stop = decode, tuple(stop)
        self._longest = max(map(len, stop), default=0)
        self._ids: list[int] = []
        self._window, self._read, self._sent = 0, 0, 0  # tokens decoded together with new ones; tokens read; characters handed out
        self.text = ""
        self.stopped = False

    def add(self, token: int) -> None:
        """One more token. Only the last few are decoded again, since how a token reads depends on its neighbours."""
        self._ids.append(token)
        self._read_new(last=False)

    def finish(self) -> None:
        """No more tokens: an unfinished character shows as it is."""
        if not self.stopped:
            self._read_new(last=True)

    def _read_new(self, last: bool) -> None:
        whole = self._decode(self._ids[self._window :])
        if whole.endswith(_BROKEN) and not last:
            return
        known = len(self._decode(self._ids[self._window : self._read]))
        before = len(self.text)
        self.text += whole[known:]
        self._window, self._read = self._read, len(self._ids)
        places = [place for text in self._stop if (place := self.text.find(text, max(0, before - self._longest + 1))) >= 0]
        if places:
            self.text, self.stopped = self.text[: min(places)], True

    def take(self, *, last: bool = False) -> str:
        """What is new and certain; with `last`, all that is left."""
        end = len(self.text) if last or self.stopped else len(self.text) - self._doubtful()
        new = self.text[self._sent : end]
        self._sent = max(self._sent, end)
        return new

    def _doubtful(self) -> int:
        """Characters at the end that may begin a stop text."""
        for length in range(min(self._longest - 1, len(self.text)), 0, -1):
            if any(text.startswith(self.text[-length:]) for text in self._stop):
                return length
        return 0
