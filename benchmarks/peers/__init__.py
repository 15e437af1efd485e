"""Vector stores that the index is compared with, each behind the same few calls.

Each runs in a process of its own, `worker.py`, which `index_peers.py` starts. The stores of others
need the environment that `make setup-peers` makes; nothing here may import `mmesh` but `ours.py`.
"""
