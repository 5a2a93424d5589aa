"""Python's search for garbage, made rare while hundreds of calls are in flight.

It stops everything, again and again, for up to a tenth of a second where a program is large, and all slots wait. Calls leave next to
nothing for it to find: what they use goes as soon as nobody holds it.
"""

import gc
import threading

_RARELY = (500_000, 20, 50)  # how many more objects there have to be before the youngest are searched, and how often the older ones are
_lock = threading.Lock()
_asked = 0
_usual = gc.get_threshold()


def search_rarely() -> None:
    """Leaves out the objects that exist already and searches the rest rarely, until `search_as_usual` was called as often as this."""
    global _asked, _usual
    with _lock:
        _asked += 1
        if _asked == 1:
            _usual = gc.get_threshold()
            gc.freeze()
            if _usual[0]:  # else it was switched off
                gc.set_threshold(*map(max, _RARELY, _usual))


def search_as_usual() -> None:
    """Undoes one `search_rarely`."""
    global _asked
    with _lock:
        _asked -= 1
        if not _asked:
            gc.set_threshold(*_usual)
            gc.unfreeze()
