"""Reports of a run: one page of HTML that can be mailed, and the same in Markdown.

What may enter: results, and the contents of a few candidates. Nothing here searches or computes a
metric; what others have published stands in `published.py` with its source and its pool.
"""
