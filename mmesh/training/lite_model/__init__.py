"""Rebuilds the model `lite` from pinned packages: `python -m mmesh.training.lite_model`."""
