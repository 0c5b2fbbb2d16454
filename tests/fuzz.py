"""Settings of the tests that feed parsers drawn inputs (`test_fuzz_*.py`): the same inputs in every run, none kept."""

import os
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

# It keeps tables of characters and of constants, otherwise in the working folder.
os.environ.setdefault("HYPOTHESIS_STORAGE_DIRECTORY", str(Path(tempfile.gettempdir(), "hypothesis-of-rrg-zoo")))

# It draws numbers and texts out of the sources of what is imported, too: a file of tests that is run alone would be
# given other inputs than in the whole suite.
assert callable(providers._get_local_constants)
providers._get_local_constants = lambda: providers._local_constants


def fuzz(examples: int) -> settings:
    """So many inputs. To look for new faults, raise the numbers and take `derandomize` out."""
    return settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )


# What tables and JSON hold that is hard to keep: quotes, line ends of all kinds, marks, characters that are none.
WORDS = st.text(max_size=8) | st.sampled_from(
    ['a"b', "a,b", "a\nb", "a\r\nb", "\r", "\u2028", "\ufeff", "\0", "\ud800", "nan", "1e5"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
