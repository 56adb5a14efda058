import numpy as np

from schemas.versions import installed_version


def test_installed_and_not():
    assert installed_version("numpy") == np.__version__
    assert installed_version("no-such-distribution-at-all") == "not installed"
