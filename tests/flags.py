"""XLA's flags of the processes that tests start."""

import os


def with_devices(count: int) -> str:
    """Value of XLA_FLAGS for so many devices of the CPU, beside the flags that the tests run with.

    Other flags than those of this process may show in a last bit.
    """
    inherited = os.environ.get("XLA_FLAGS", "")
    return f"{inherited} --xla_force_host_platform_device_count={count}".strip()
