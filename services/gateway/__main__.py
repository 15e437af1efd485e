"""Run the gateway service: `python -m services.gateway --help`."""

from services.gateway.server import main

if __name__ == "__main__":  # vLLM's processes import this module again
    main()
