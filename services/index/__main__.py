"""Run the index service: `python -m services.index --help`."""

import mmesh.serving.libraries  # noqa: F401  # before numpy and gRPC
from services.index.server import main

if __name__ == "__main__":  # processes that vLLM or a build starts import this module again
    main()
