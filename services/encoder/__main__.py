"""Run the encoder service: `python -m services.encoder --help`."""

from services.encoder.server import main

if __name__ == "__main__":  # vLLM's processes import this module again
    main()
