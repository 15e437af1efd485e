"""The reranker service: judges how well candidates answer a query."""
