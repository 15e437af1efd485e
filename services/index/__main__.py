"""Run the index service: `python -m services.index --help`."""

from services.index.server import main

if __name__ == "__main__":  # vLLM's processes import this module again
    main()
