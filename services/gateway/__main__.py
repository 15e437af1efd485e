"""Run the gateway service: `python -m services.gateway --help`."""

import mmesh.serving.libraries  # noqa: F401  # before numpy and gRPC
from services.gateway.server import main

if __name__ == "__main__":  # processes that vLLM or a build starts import this module again
    main()
