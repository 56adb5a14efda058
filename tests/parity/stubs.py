"""Stand-ins for packages that a reference implementation imports and the parts compared here do not
use.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType


@contextmanager
def stub_torchvision() -> Iterator[None]:
    """An empty torchvision for the time of an import of torch-fidelity, and what was there before
    afterwards.

    It names what torch-fidelity 0.4 looks up at import. An installed torchvision is hidden too: one
    that was built for another torch fails to import.
    """
    names = (
        "torchvision",
        "torchvision.datasets",
        "torchvision.transforms",
        "torchvision.transforms.functional",
    )
    stubs = {name: ModuleType(name) for name in names}
    for name, module in stubs.items():
        module.__spec__ = ModuleSpec(name, loader=None, is_package=True)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(stubs[parent], child, module)
    for dataset in ("CIFAR10", "CIFAR100", "STL10"):
        setattr(stubs["torchvision.datasets"], dataset, type(dataset, (), {}))
    before = {
        name: sys.modules.pop(name)
        for name in list(sys.modules)
        if name.partition(".")[0] == "torchvision"
    }
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update(before)


@contextmanager
def stub_missing(*names: str) -> Iterator[None]:
    """Empty modules for the time of an import, in place of those that are not installed."""
    stubs = {name: ModuleType(name) for name in names if find_spec(name) is None}
    sys.modules.update(stubs)
    try:
        yield
    finally:
        for name in stubs:
            del sys.modules[name]
