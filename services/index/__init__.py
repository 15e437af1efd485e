"""The index service: stores candidates durably and searches the shard that it holds."""
