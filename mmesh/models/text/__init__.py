"""Text for models: `plain` has no special tokens, `marked` prompts say which spans are.

What may enter: how untrusted text becomes tokens. What may not: what a model makes of them.
"""
