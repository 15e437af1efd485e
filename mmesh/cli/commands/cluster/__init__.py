"""Commands for a mesh on a cluster: its capacity, its manifests."""
