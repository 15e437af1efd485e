"""Variables that native libraries read once, while they are imported: import this before them."""

import os

# gRPC: with its older listener a call wakes fewer threads (docs/adr/0011).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
# numpy: its own threads would wait for each other where two passes run, and a process that has
# threads cannot be forked.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
