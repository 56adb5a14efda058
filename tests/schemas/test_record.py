import numpy as np
import pytest

from schemas.layout import Layout, layout_tensors
from schemas.record import decode_record, encode_record


def moments(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=(2, 3, 4)).astype(np.float16) for name in ("mean", "logvar")}


SPECS = layout_tensors(Layout.MOMENTS, (2, 3, 4))


def test_round_trip_is_bitwise_and_deterministic():
    tensors = moments()
    serialized = encode_record("nß/1.jpg", 7, tensors, SPECS)
    assert serialized == encode_record("nß/1.jpg", 7, dict(reversed(tensors.items())), SPECS)
    record = decode_record(serialized, SPECS)
    assert (record.key, record.label) == ("nß/1.jpg", 7)
    for name, array in tensors.items():
        np.testing.assert_array_equal(record.tensors[name], array)


def test_uint8_images_round_trip():
    specs = layout_tensors(Layout.IMAGE, (4, 4, 3))
    image = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    record = decode_record(encode_record("k", 0, {"image": image}, specs), specs)
    np.testing.assert_array_equal(record.tensors["image"], image)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("mean"), "do not match the layout"),
        (lambda t: t.update(mean=t["mean"].astype(np.float32)), "float32"),
        (lambda t: t.update(mean=t["mean"][:1]), "mean is"),
        (lambda t: t["logvar"].__setitem__((0, 0, 0), np.inf), "logvar is not finite"),
    ],
)
def test_a_wrong_tensor_is_refused_with_the_key_named(change, message):
    tensors = moments()
    change(tensors)
    with pytest.raises(ValueError, match=message) as error:
        encode_record("some/key", 0, tensors, SPECS)
    assert "some/key" in str(error.value)


def test_damaged_bytes_are_an_error():
    serialized = encode_record("k", 0, moments(), SPECS)
    with pytest.raises(ValueError, match=r"Example|missing|hold one value"):
        decode_record(serialized[:-30], SPECS)
    with pytest.raises(ValueError, match="missing or is not"):
        decode_record(serialized, layout_tensors(Layout.MOMENTS, (2, 3, 8)))
