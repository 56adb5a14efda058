import hashlib
import json

import pytest

from schemas.sealed import seal, seal_line, unseal, unseal_line

TEXT = json.dumps({"a": [1, 2], "name": "Zoë"}, indent=2) + "\n"


def test_unseal_is_the_inverse_and_the_digest_is_the_last_field():
    sealed = seal(TEXT)
    assert unseal(sealed.encode()) == TEXT
    content = json.loads(sealed)
    assert list(content) == ["a", "name", "digest"]
    assert content["digest"] == hashlib.sha256(TEXT.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"\n",
        lambda data: data.replace(b"1,", b"1 ,"),
        lambda data: data.replace(b'"digest": "', b'"digest":  "'),
        lambda data: data.upper(),
        lambda data: TEXT.encode(),
        lambda data: b"",
        lambda data: b"\xff" + data,
    ],
)
def test_other_bytes_are_refused(change):
    with pytest.raises(ValueError, match="digest"):
        unseal(change(seal(TEXT).encode()))


@pytest.mark.parametrize("text", ["{}\n", "[1]\n", TEXT[:-1], '{"a": 1}\n'])
def test_only_indented_objects_can_be_sealed(text):
    with pytest.raises(ValueError, match="sealed"):
        seal(text)


LINE = json.dumps({"a": [1, 2], "name": "Zoë"})


def test_a_line_is_sealed_and_unsealed():
    sealed = seal_line(LINE)
    assert unseal_line(sealed.encode()) == LINE
    assert json.loads(sealed)["digest"] == hashlib.sha256(LINE.encode()).hexdigest()
    assert "\n" not in sealed
    assert unseal_line(LINE.encode()) == LINE, "of an earlier commit"
    with pytest.raises(ValueError, match="digest"):
        unseal_line(sealed.replace("1", "3", 1).encode())
    with pytest.raises(ValueError, match="utf-8"):
        unseal_line(b"\xff")
