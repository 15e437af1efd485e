"""Model families behind two small protocols: encoders and judges."""
