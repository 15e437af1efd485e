"""The gateway service: the public API; routes by modality, fans out, merges, reranks."""
