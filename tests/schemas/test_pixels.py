import numpy as np
import pytest

from schemas.pixels import from_uint8, to_uint8


def test_every_value_survives_the_round_trip_and_the_range_is_exact():
    values = np.arange(256, dtype=np.uint8)
    floats = from_uint8(values)
    assert floats.dtype == np.float32
    assert (floats.min(), floats.max()) == (-1.0, 1.0)
    np.testing.assert_array_equal(to_uint8(floats), values)


def test_out_of_range_is_clipped_and_halves_round_to_even():
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 3.0, 0.0], np.float32)), [0, 255, 128])


def test_scaling_twice_is_an_error_not_a_picture():
    with pytest.raises(TypeError, match="uint8"):
        from_uint8(np.zeros(3, np.float32))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="floating"):
        to_uint8(np.zeros(3, np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(np.array([np.nan]))
