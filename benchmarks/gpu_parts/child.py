"""The process of one part: `python -m benchmarks.gpu_parts.child CONTEXT`, with a `Context` as
JSON.
"""

import ctypes
import importlib
import os
import signal
import sys
import traceback
from contextlib import suppress

from benchmarks.gpu_parts.part import SITE, Context

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux


def main(text: str) -> int:
    """Run a part. The last line on stderr is why it failed."""
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    context = Context.from_json(text)
    sys.path.append(str(context.work / SITE))  # last: what is installed here is taken first
    # Several processes and two frameworks take turns on one device.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(context.cache("jax")))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(context.cache("inductor")))
    if context.tiny:
        # a minute of compilation would show nothing at these sizes
        os.environ["TORCH_COMPILE_DISABLE"] = "1"
    try:
        importlib.import_module(context.module).run(context)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        told = (str(error).strip().splitlines() or [""])[0]
        name = "" if isinstance(error, SystemExit) else f"{type(error).__name__}: "
        print(f"{name}{told[:300]}", file=sys.stderr, flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
