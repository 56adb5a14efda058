"""What several processes agree on, in two real ones of two fake devices each; and addresses that
lead nowhere.
"""

import json
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import numpy as np
import pytest

from flowtrain.devices.hosts import any_process, is_main, join, on_one_device, put_batch, rows
from flowtrain.devices.sharding import batch_sharding, make_mesh
from flowtrain.state.checkpoint import Checkpoints
from schemas.config import TrainConfig
from schemas.errors import UserError

WORKER = """
    import json, os, sys
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    import jax, numpy as np
    from flowtrain.state.checkpoint import Checkpoints
    from flowtrain.devices.hosts import any_process, is_main, join, on_one_device, put_batch, rows
    from flowtrain.devices.sharding import batch_sharding, make_mesh
    from flowtrain.state.train_state import TrainState
    from schemas.config import TrainConfig
    from schemas.errors import UserError

    port, process, workdir = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    join(f"127.0.0.1:{port}", 2, process)
    found = {"main": is_main(), "devices": [device.id for device in jax.devices()]}
    mesh = make_mesh(fsdp=2)
    placement = batch_sharding(mesh)
    mine = rows(placement, 8)
    found["rows"] = [mine.start, mine.stop]
    values = np.arange(24.0, dtype=np.float32).reshape(8, 3)
    batch = put_batch({"x": values[mine], "i": np.arange(8)[mine]}, placement)
    found["sum"] = float(jax.jit(lambda batch: (batch["x"] * batch["i"][:, None]).sum())(batch))
    found["whole"] = np.asarray(on_one_device(batch)["x"]).ravel().tolist()
    found["on"] = [device.id for device in on_one_device(batch)["i"].devices()]
    found["any"] = [any_process(process == 1), any_process(False), any_process(True)]
    try:
        devices = jax.devices()
        rows(batch_sharding(make_mesh([devices[k] for k in (0, 2, 1, 3)])), 8)
    except UserError as error:
        found["interleaved"] = str(error)

    from pathlib import Path
    number = jax.jit(lambda: np.int32(1), out_shardings=jax.NamedSharding(mesh, jax.P()))()
    tree = {"blocks": {"x": batch["x"]}}
    with Checkpoints(Path(workdir), TrainConfig(steps=1, batch_size=1)) as checkpoints:
        state = TrainState(number, tree, {"ema": tree}, {"x": batch["i"]}, number, number)
        checkpoints.save(5, state, {}, {})
        found["latest"] = checkpoints.latest()
    print(json.dumps(found))
"""


@pytest.fixture
def port() -> int:
    """One that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def test_two_processes(tmp_path: Path, port: int):
    words = [sys.executable, "-c", textwrap.dedent(WORKER), str(port)]
    started = [
        subprocess.Popen(
            [*words, str(process), str(tmp_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in (0, 1)
    ]
    try:
        ended = [process.communicate(timeout=120) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0, 0], ended
    found = [json.loads(output.splitlines()[-1]) for output, _ in ended]
    devices = found[0]["devices"]
    assert len(devices) == 4
    x, i = np.arange(24.0).reshape(8, 3), np.arange(8)
    for process, what in enumerate(found):
        assert what == {
            "main": process == 0,
            "devices": devices,
            "rows": [4 * process, 4 * process + 4],
            "sum": (x * i[:, None]).sum(),
            "whole": x.ravel().tolist(),
            "on": [devices[2 * process]],
            "any": [True, False, True],
            "interleaved": (
                "the devices of a host are not side by side in the mesh; use another --fsdp"
            ),
            "latest": 5,
        }
    with Checkpoints(tmp_path, TrainConfig(steps=1, batch_size=1)) as checkpoints:
        target = jax.ShapeDtypeStruct((8, 3), np.float32, sharding=batch_sharding(make_mesh()))
        saved = checkpoints.read(5, {"params": {"blocks": {"x": target}}}, ["meta"])
    np.testing.assert_array_equal(saved["params"]["blocks"]["x"], x)
    assert saved["meta"] == {"skipped": 1, "streak": 1}


@pytest.mark.parametrize(("devices", "fsdp"), [(8, 1), (8, 4), (8, 8), (1, 1)])
def test_one_process_reads_every_row_and_takes_the_whole_back(devices: int, fsdp: int):
    placement = batch_sharding(make_mesh(jax.devices()[:devices], fsdp))
    assert rows(placement, 16) == slice(0, 16)
    batch = {
        "x": np.arange(48, dtype=np.float16).reshape(16, 3),
        "i": np.arange(16, dtype=np.int32),
    }
    put = put_batch(batch, placement)
    back = on_one_device(put)
    for name, value in batch.items():
        assert put[name].sharding == placement
        assert back[name].devices() == {jax.devices()[0]}
        assert put[name].dtype == back[name].dtype == value.dtype
        np.testing.assert_array_equal(put[name], value)
        np.testing.assert_array_equal(back[name], value)


def test_one_process_agrees_with_itself():
    assert is_main()
    assert any_process(True)
    assert not any_process(False)


def test_processes_that_cannot_be_joined_are_one_line(port: int, monkeypatch: pytest.MonkeyPatch):
    """JAX itself would end this process, or crash it."""
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    told = (
        r"^cannot join the other processes \({}.*\); give --coordinator HOST:PORT, --processes N "
        r"and --process I"
    )
    for address in ("host", "host:", ":1", "host:http"):
        with pytest.raises(UserError, match=told.format(f"{address} is not HOST:PORT")):
            join(address, 2, 1)
    with pytest.raises(UserError, match=told.format(f"127.0.0.1:{port}: Connection refused")):
        join(f"127.0.0.1:{port}", 2, 1, patience=0.3)
    with (
        socket.create_server(("", port)),
        pytest.raises(UserError, match=told.format(".*Address already in use")),
    ):
        join(f"127.0.0.1:{port}", 2, 0)
    with pytest.raises(
        UserError, match=told.format("jax.distributed.initialize.. must be called before")
    ):
        join(None, None, None)
