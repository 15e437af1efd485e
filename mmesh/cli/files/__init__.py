"""Files that commands read and write: folders, JSON Lines, Parquet, archives, journals.

What may enter: formats. What may not: the network and printing.
"""
