"""One module for each version of the log's tables; a released one is never edited."""
