"""What native libraries read once, while they are imported: import this before them."""

import ctypes
import os

# gRPC: with its older listener a call wakes fewer threads (docs/adr/0011).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
# numpy: its own threads would wait for each other where two passes run, and a process that has
# threads cannot be forked.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# glibc: up to eight arenas a core, and of all but the first one `malloc_trim` leaves the top as it
# is, so that memory grows for hours to what calls ever took at once (benchmarks/soak.py). One is as
# quick with eight clients. The variable is for processes that this one starts.
_M_ARENA_MAX = -8
_arenas = os.environ.setdefault("MALLOC_ARENA_MAX", "1")
_mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
if _mallopt is not None and _arenas.isdecimal():
    _mallopt(_M_ARENA_MAX, int(_arenas))
