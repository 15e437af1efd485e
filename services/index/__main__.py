"""Run the index service: `python -m services.index --help`."""

import os

# Read while gRPC is imported: with its older listener a call wakes fewer threads (docs/adr/0011).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")
# Read while numpy is imported: its own threads would wait for each other where two passes run, and
# a process that has threads cannot be forked.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from services.index.server import main

if __name__ == "__main__":  # processes that vLLM or a build starts import this module again
    main()
