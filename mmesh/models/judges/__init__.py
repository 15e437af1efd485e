"""Judges, the models that rerank: one class each behind `mmesh.models.protocol.JudgeModel`.

`families` opens one by its name. `prompts` and `templates` write what a multimodal LLM reads, the
`vllm_*` modules run it, `zero_shot` and the rerankers say how its answer becomes a score. What may
enter: how a pair is scored. What may not: budgets and gRPC.
"""
