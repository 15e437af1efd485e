"""Model families in training: which parameters train, and how what was trained is saved.

What may enter: torch, adapters, and the families of `mmesh.models`. What may not: data and loops.
"""
