import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests of distributions share stats.py


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real pictures that EXCITE_TEST_DATA names; not part of the repository."""
    folder = os.environ.get("EXCITE_TEST_DATA")
    if not folder:
        pytest.skip("EXCITE_TEST_DATA is not set: no real pictures to test with")
    return Path(folder)
