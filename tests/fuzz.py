"""Settings of the tests that feed parsers drawn inputs (`test_fuzz_*.py`): the same inputs in every run, none kept."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings

# It keeps tables of characters and of constants, otherwise in the working folder.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir(), "hypothesis-of-rrg-zoo")))


def fuzz(examples: int) -> settings:
    """So many inputs. To look for new faults, raise the numbers and take `derandomize` out."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
