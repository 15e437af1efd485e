"""Run the reranker service: `python -m services.reranker --help`."""

from services.reranker.server import main

if __name__ == "__main__":  # vLLM's processes import this module again
    main()
