"""`python -m pipelines.runners.worker COMMAND`: a worker process of Beam's that ends with the
process that began it, COMMAND.

Left to itself, a worker whose parent is killed works on to the end of its bundle: here a shard,
which may take minutes; and one that was still starting waits for good. What it would write does no
harm (see `pipelines.dataset.build.ShardedBuild.check_ours`), but the command that goes on wants the
cores.
"""

import os
import sys
import threading
import time

_INTERVAL = 0.5  # seconds


def _end_with(command: int) -> None:
    while os.getppid() == command:
        time.sleep(_INTERVAL)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(
        target=_end_with, args=(int(sys.argv[1]),), daemon=True, name="end with the command"
    ).start()
    from apache_beam.runners.worker import sdk_worker, sdk_worker_main

    # A trace goes to the command, which tells of it. Beam would print it here as well, and that of
    # a worker whose command has failed of another one.
    sdk_worker.__dict__["print"] = lambda *_, **__: None
    sdk_worker_main.main(sys.argv[:1])
