"""Two habits of Python that hold up hundreds of calls in flight, changed for as long as somebody asks for it.

`rare_search`: the search for garbage stops everything, again and again, for up to a tenth of a second where a program
  is large; calls
leave next to nothing for it to find, because what they use goes as soon as nobody holds it. `quick_turns`: a thread
that computes keeps the interpreter for 5 ms whenever the event loop lets go of it, as at every request that it sends.
Quick turns cost threads that only wait for their server more than they give, so they are for the time of a computation
only.
"""

from collections.abc import Callable
import gc
import sys
import threading

_SEARCH = (
    500_000,
    20,
    50,
)  # how many more objects there have to be before the youngest are searched, and how often the older ones are
_SWITCH_SECONDS = 0.0005


class Change:
    """A setting of the interpreter that is changed while anybody is inside.

    Args:
      make: changes it and returns what undoes that.
    """

    def __init__(self, make: Callable[[], Callable[[], None]]):
        self._make = make
        self._lock = threading.Lock()
        self._inside = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._undo = self._make()
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._undo()


def _search_rarely() -> Callable[[], None]:
    usual = gc.get_threshold()
    gc.freeze()  # what exists already is left out
    if usual[0]:  # else it was switched off
        gc.set_threshold(*map(max, _SEARCH, usual))

    def undo():
        gc.set_threshold(*usual)
        gc.unfreeze()

    return undo


def _take_quick_turns() -> Callable[[], None]:
    usual = sys.getswitchinterval()
    sys.setswitchinterval(min(_SWITCH_SECONDS, usual))
    return lambda: sys.setswitchinterval(usual)


rare_search = Change(_search_rarely)
quick_turns = Change(_take_quick_turns)
