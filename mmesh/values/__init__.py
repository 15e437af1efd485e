"""Plain values that candidates and writes carry: ids and names, moments in time, tokens; paths.

What may enter: how such a value is checked, written and read. What may not: protobuf, the network.
"""
