"""Run the encoder service: `python -m services.encoder --help`."""

import mmesh.serving.libraries  # noqa: F401  # before numpy and gRPC
from services.encoder.server import main

if __name__ == "__main__":  # processes that vLLM or a build starts import this module again
    main()
