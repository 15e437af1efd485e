"""What can go wrong in training, in words for the person who trains."""


class TrainingError(Exception):
    """A training run cannot go on; the message says what to do."""


def not_importable(error: ImportError) -> TrainingError:
    """Return what says that a library is missing, or is there and does not load."""
    if isinstance(error, ModuleNotFoundError):
        return TrainingError(f"training needs {error.name}: pip install 'mmesh[training]'")
    return TrainingError(
        f"a library that training needs is installed and does not load: {error}; do its version "
        "and that of torch fit? `pip install --upgrade 'mmesh[training]'`"
    )
