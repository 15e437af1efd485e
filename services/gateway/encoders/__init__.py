"""The encoders over gRPC: which of them serves a model, and how its load is shared out.

`router` chooses among encoders of the same fingerprint (load balancing, circuit breaker) behind
`interfaces.Encoder`; `encoder_backend` is one of them. What may enter: how encoders are found and
called. What may not: what is done with vectors. It uses `rpc`, `circuit_breaker` and `interfaces`.
"""
