"""Run the reranker service: `python -m services.reranker --help`."""

import mmesh.serving.libraries  # noqa: F401  # before numpy and gRPC
from services.reranker.server import main

if __name__ == "__main__":  # processes that vLLM or a build starts import this module again
    main()
