"""The demo: a real collection, and one search for each of the eight task shapes."""
