"""Encoder families: one class each behind `mmesh.models.protocol.EncoderModel`.

`families` opens one by its name; `matryoshka` cuts the vectors of one. What may enter: how a
family writes its prompts, prepares pictures and runs. What may not: batching and gRPC.
"""
