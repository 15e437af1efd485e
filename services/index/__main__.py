"""Run the index service: `python -m services.index --help`."""

import os

# Read while gRPC is imported: with its older listener a call wakes fewer threads (docs/adr/0011).
os.environ.setdefault("GRPC_EXPERIMENTS", "-event_engine_listener")

from services.index.server import main

if __name__ == "__main__":  # the processes that build segments import this module again
    main()
