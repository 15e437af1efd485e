"""Hard negatives: candidates that a model puts near a query though they do not answer it.

What may enter: how negatives are drawn, and the live mesh that is asked for them. What may not:
torch, and options of the command line.
"""
