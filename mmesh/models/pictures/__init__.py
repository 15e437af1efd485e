"""Pictures from untrusted bytes: what a file holds, its pixels, and processes that can be ended.

`containers` reads the four file formats without a pixel, `pixels` decodes, `worker` is a process
that decodes and `pool` owns such processes. `mmesh.models.images` is what others use. What may
enter: how bytes become pixels, and what that may cost. What may not: what a model makes of them.
"""


class BrokenPicture(ValueError):
    """The bytes are no picture that is read; the text says why."""
