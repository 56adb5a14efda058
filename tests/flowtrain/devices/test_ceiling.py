"""The measured ceiling against products timed here, and what the module needs."""

import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flowtrain.devices.ceiling import matmul_ceiling


def _flops_of_numpy(side: int = 1024) -> float:
    factor, best = np.random.default_rng(0).random((side, side), np.float32), float("inf")
    for _ in range(5):
        begin = time.perf_counter()
        np.matmul(factor, factor)
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def test_one_device_is_as_fast_as_another_library_finds_it():
    # Another library, other threads, a machine that others use: within a factor, which a count of
    # operations that is wrong by the side, or a result that was not waited for, is far outside of.
    assert 1 / 8 < matmul_ceiling(jnp.float32, jax.devices()[:1]) / _flops_of_numpy() < 8


def test_devices_that_share_their_cores_are_not_counted_as_many():
    before, eight, after = (matmul_ceiling(jnp.float32, jax.devices()[:n]) for n in (1, 8, 1))
    assert eight < 4 * max(before, after)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_measurement_is_short_and_in_the_dtype_asked_for(
    dtype, monkeypatch: pytest.MonkeyPatch
):
    seen = []
    put = jax.device_put
    monkeypatch.setattr(jax, "device_put", lambda x, device: seen.append(x.dtype) or put(x, device))
    begin = time.perf_counter()
    assert np.isfinite(matmul_ceiling(dtype, jax.devices()[:1]))
    assert seen == [dtype]
    assert time.perf_counter() - begin < 5


def test_a_machine_with_jax_and_numpy_alone_can_measure():
    code = (
        "import sys\n"
        "for name in ('optax', 'flax', 'grain', 'orbax', 'pydantic', 'tqdm', 'tensorboardX', "
        "'click'):\n"
        "    sys.modules[name] = None\n"
        "import flowtrain.devices.ceiling"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
