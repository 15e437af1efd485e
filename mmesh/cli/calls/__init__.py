"""Calls that commands make beyond the SDK's: of one service, or many at a time.

What may enter: requests and their answers in plain Python. What may not: options and printing.
"""
