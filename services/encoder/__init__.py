"""The encoder service: content in, unit vectors out."""
