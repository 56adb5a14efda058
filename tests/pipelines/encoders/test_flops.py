from pathlib import Path

import pytest

from pipelines.encoders.flops import _flops, encoder_flops


def test_flops_of_the_tiny_vae_are_those_of_its_convolutions(tiny_vae: Path) -> None:
    def conv(side: int, inputs: int, outputs: int, kernel: int = 3) -> int:
        return 2 * side**2 * kernel**2 * inputs * outputs

    side, half = 16, 8
    expected = conv(side, 3, 8) + 2 * conv(side, 8, 8) + conv(half, 8, 8)  # in, first block, down
    expected += 2 * conv(half, 8, 8) + 4 * conv(half, 8, 8)  # second block, two middle blocks
    # attention: four projections, scores and their use
    expected += 4 * 2 * half**2 * 8 * 8 + 2 * 2 * half**4 * 8
    expected += conv(half, 8, 8) + conv(half, 8, 8, 1)  # out, quantisation
    # Borders multiply zeros less, norms and activations come on top.
    assert encoder_flops(str(tiny_vae), side) == pytest.approx(expected, rel=0.2)


def test_flops_grow_with_the_pixels(tiny_vae: Path) -> None:
    small, large = (encoder_flops(str(tiny_vae), side) for side in (16, 32))
    assert small is not None
    assert large is not None
    assert large > 4 * small


@pytest.mark.parametrize(
    ("analysis", "flops"),
    [
        (None, None),
        ({}, None),
        ([], None),
        ({"flops": 3.0}, 3),
        ([{"flops": 3.0}], 3),
        ([{"flops": 1.0}, {}], 1),
    ],
)
def test_backends_that_count_otherwise_or_not_at_all(analysis: object, flops: int | None) -> None:
    assert _flops(analysis) == flops
