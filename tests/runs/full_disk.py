"""A disk that is full, for tests: the operating system refuses what goes beyond a size."""

import contextlib
import resource


@contextlib.contextmanager
def files_of_at_most(size: int):
    """Within, this process cannot write beyond `size` bytes of any file ("File too large")."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
