"""Real servers for tests and benchmarks, started on loopback from packages of this machine."""
