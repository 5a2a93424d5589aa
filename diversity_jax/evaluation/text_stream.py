"""Text of tokens that arrive one by one."""

from collections.abc import Callable, Sequence

_REPLACEMENT = "\ufffd"  # what the bytes of an unfinished character decode to


class TextStream:
    """The text of one answer while its tokens arrive: complete characters only, ended before a stop text.

    Args:
      decode: ids to text.
      stop: texts that end the answer and are left out of it.
      min_tokens: before so many, no text ends it.

    Attributes:
      text: everything so far; final once `stopped`, or after `finish`.
      stopped: a stop text has been met.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str] = (), *, min_tokens: int = 0):
        self.text, self.stopped = "", False
        self._decode, self._stop, self._min_tokens = decode, tuple(stop), min_tokens
        self._longest_stop = max(map(len, stop), default=0)
        self._ids: list[int] = []
        self._window_start, self._ids_read = 0, 0  # tokens from the start of the window are decoded with new ones
        self._characters_taken, self._stop_from = 0, 0

    def add(self, token: int) -> None:
        """One more token. Only the last few are decoded again, since how a token reads depends on its neighbours."""
        self._ids.append(token)
        self._read_new(last=False)

    def finish(self) -> None:
        """No more tokens: an unfinished character shows as it is."""
        if not self.stopped:
            self._read_new(last=True)

    def _read_new(self, last: bool) -> None:
        window = self._decode(self._ids[self._window_start :])
        if window.endswith(_REPLACEMENT) and not last:
            return
        known = len(self._decode(self._ids[self._window_start : self._ids_read]))
        search_from = max(self._stop_from, len(self.text) - self._longest_stop + 1)
        self.text += window[known:]
        if len(self._ids) < self._min_tokens:
            search_from = self._stop_from = len(self.text)
        self._window_start, self._ids_read = self._ids_read, len(self._ids)
        stops = [start for text in self._stop if (start := self.text.find(text, search_from)) >= 0]
        if stops:
            self.text, self.stopped = self.text[: min(stops)], True

    def take(self, *, last: bool = False) -> str:
        """What is new and not the possible beginning of a stop text; with `last`, all that is left."""
        end = len(self.text)
        if not last and not self.stopped:
            lengths = range(min(self._longest_stop - 1, end), 0, -1)
            end -= next((n for n in lengths if any(stop.startswith(self.text[-n:]) for stop in self._stop)), 0)
        new = self.text[self._characters_taken : end]
        self._characters_taken = max(self._characters_taken, end)
        return new
