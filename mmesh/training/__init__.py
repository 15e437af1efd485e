"""How models are trained and their artefacts rebuilt; never imported by a service."""
