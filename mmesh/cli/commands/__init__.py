"""The commands, one module each. What may enter: options, and calls of the SDK."""
