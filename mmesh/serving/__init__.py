"""What every mmesh server needs, and nothing a client needs."""
