"""Offline evaluation of retrieval on a live mesh: data sets, runs, metrics and reports."""
