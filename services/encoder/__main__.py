"""Run the encoder service: `python -m services.encoder --help`."""

import os

# Read while numpy is imported: its own threads would wait for each other where two passes run.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from services.encoder.server import main

if __name__ == "__main__":  # vLLM's processes import this module again
    main()
