"""A stand-in for the parts of torchvision that pytorch-fid, torch-fidelity and clean-fid name when
they are imported.

The blocks have the attributes of torchvision's `models/inception.py`, from which pytorch-fid
derives its own, and the wiring of Szegedy et al. 2016. They are the parents only: all that FID's
network changes is in pytorch-fid.
"""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn


class BasicConv2d(nn.Module):
    def __init__(self, inputs: int, outputs: int, **convolution: Any):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, bias=False, **convolution)
        self.bn = nn.BatchNorm2d(outputs, eps=1e-3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.bn(self.conv(x)))


def conv(
    inputs: int, outputs: int, height: int = 1, width: int | None = None, stride: int = 1
) -> BasicConv2d:
    """Padded to keep the size, but for strides, which are never padded here."""
    kernel = (height, width or height)
    padding = (0, 0) if stride > 1 else (kernel[0] // 2, kernel[1] // 2)
    return BasicConv2d(inputs, outputs, kernel_size=kernel, stride=stride, padding=padding)


class InceptionA(nn.Module):
    def __init__(self, inputs: int, pool_features: int):
        super().__init__()
        self.branch1x1 = conv(inputs, 64)
        self.branch5x5_1, self.branch5x5_2 = conv(inputs, 48), conv(48, 64, 5)
        self.branch3x3dbl_1, self.branch3x3dbl_2, self.branch3x3dbl_3 = (
            conv(inputs, 64),
            conv(64, 96, 3),
            conv(96, 96, 3),
        )
        self.branch_pool = conv(inputs, pool_features)


class InceptionB(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3 = conv(inputs, 384, 3, stride=2)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = conv(inputs, 64), conv(64, 96, 3)
        self.branch3x3dbl_3 = conv(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, nn.functional.max_pool2d(x, 3, 2)], 1)


class InceptionC(nn.Module):
    def __init__(self, inputs: int, channels_7x7: int):
        super().__init__()
        c = channels_7x7
        self.branch1x1 = conv(inputs, 192)
        self.branch7x7_1, self.branch7x7_2, self.branch7x7_3 = (
            conv(inputs, c),
            conv(c, c, 1, 7),
            conv(c, 192, 7, 1),
        )
        self.branch7x7dbl_1, self.branch7x7dbl_2, self.branch7x7dbl_3 = (
            conv(inputs, c),
            conv(c, c, 7, 1),
            conv(c, c, 1, 7),
        )
        self.branch7x7dbl_4, self.branch7x7dbl_5 = conv(c, c, 7, 1), conv(c, 192, 1, 7)
        self.branch_pool = conv(inputs, 192)


class InceptionD(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = conv(inputs, 192), conv(192, 320, 3, stride=2)
        self.branch7x7x3_1, self.branch7x7x3_2 = conv(inputs, 192), conv(192, 192, 1, 7)
        self.branch7x7x3_3, self.branch7x7x3_4 = conv(192, 192, 7, 1), conv(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        long = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat(
            [self.branch3x3_2(self.branch3x3_1(x)), long, nn.functional.max_pool2d(x, 3, 2)], 1
        )


class InceptionE(nn.Module):
    def __init__(self, inputs: int):
        super().__init__()
        self.branch1x1 = conv(inputs, 320)
        self.branch3x3_1, self.branch3x3_2a, self.branch3x3_2b = (
            conv(inputs, 384),
            conv(384, 384, 1, 3),
            conv(384, 384, 3, 1),
        )
        self.branch3x3dbl_1, self.branch3x3dbl_2 = conv(inputs, 448), conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = conv(384, 384, 1, 3), conv(384, 384, 3, 1)
        self.branch_pool = conv(inputs, 192)


class Inception3(nn.Module):
    """Holds the parts that pytorch-fid does not replace: it takes them out and calls them
    itself.
    """

    def __init__(self, num_classes: int):
        super().__init__()
        self.Conv2d_1a_3x3 = BasicConv2d(3, 32, kernel_size=3, stride=2)
        self.Conv2d_2a_3x3 = BasicConv2d(32, 32, kernel_size=3)
        self.Conv2d_2b_3x3 = conv(32, 64, 3)
        self.Conv2d_3b_1x1 = conv(64, 80)
        self.Conv2d_4a_3x3 = BasicConv2d(80, 192, kernel_size=3)
        self.Mixed_6a, self.Mixed_7a = InceptionB(288), InceptionD(768)
        self.fc = nn.Linear(2048, num_classes)


class ToTensor:
    """Channels first; 8-bit values become shares of 255, others stay, as torchvision documents."""

    def __call__(self, image: Any) -> torch.Tensor:
        values = np.array(image)
        tensor = torch.from_numpy(values).permute(2, 0, 1).to(torch.float32)
        return tensor / 255 if values.dtype == np.uint8 else tensor


def inception_v3(
    num_classes: int, aux_logits: bool, weights: None, init_weights: bool
) -> Inception3:
    return Inception3(num_classes)


def _module(name: str, **members: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(members)
    return module


@contextmanager
def torchvision_stand_in() -> Iterator[None]:
    """Where torchvision is missing, put the stand-in there for the imports within, and take it away
    again.
    """
    try:
        importlib.import_module("torchvision")
    except Exception:  # missing, or built for another torch
        pass
    else:
        yield
        return
    blocks = {kind.__name__: kind for kind in (InceptionA, InceptionC, InceptionE)}
    inception = _module("torchvision.models.inception", **blocks)
    functional = _module("torchvision.transforms.functional")
    parts = {
        "models": _module("torchvision.models", inception=inception, inception_v3=inception_v3),
        "transforms": _module("torchvision.transforms", ToTensor=ToTensor, functional=functional),
        "datasets": _module("torchvision.datasets", CIFAR10=object, CIFAR100=object, STL10=object),
    }
    modules = {
        "torchvision": _module("torchvision", __version__="0.20", **parts),
        **{f"torchvision.{name}": module for name, module in parts.items()},
        "torchvision.models.inception": inception,
        "torchvision.transforms.functional": functional,
    }
    before = {name: sys.modules.pop(name, None) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            del sys.modules[name]
            if module is not None:
                sys.modules[name] = module
