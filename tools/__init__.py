"""What keeps the repository in order; not shipped."""
