"""Two habits of Python that hold up hundreds of calls in flight, changed for as long as there are any.

The search for garbage stops everything, again and again, for up to a tenth of a second where a program is large; calls leave next to
nothing for it to find, because what they use goes as soon as nobody holds it. And a thread that computes, which reads a corpus for
instance, keeps the interpreter for 5 ms whenever the event loop lets go of it, as at every request that it sends.
"""

import gc
import sys
import threading

_SEARCH = (500_000, 20, 50)  # how many more objects there have to be before the youngest are searched, and how often the older ones are
_SWITCH_SECONDS = 0.0005
_lock = threading.Lock()
_asked = 0
_usual = (gc.get_threshold(), sys.getswitchinterval())


def begin() -> None:
    """Leaves the objects that exist already out of the search for garbage, searches the rest rarely, and has threads take turns quickly."""
    global _asked, _usual
    with _lock:
        _asked += 1
        if _asked > 1:
            return
        _usual = search, switch_seconds = gc.get_threshold(), sys.getswitchinterval()
        gc.freeze()
        if search[0]:  # else it was switched off
            gc.set_threshold(*map(max, _SEARCH, search))
        sys.setswitchinterval(min(_SWITCH_SECONDS, switch_seconds))


def end() -> None:
    """Undoes all that once it was called as often as `begin`."""
    global _asked
    with _lock:
        _asked -= 1
        if not _asked:
            search, switch_seconds = _usual
            gc.set_threshold(*search)
            gc.unfreeze()
            sys.setswitchinterval(switch_seconds)
