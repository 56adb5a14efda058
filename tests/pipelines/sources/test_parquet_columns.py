"""The columns of images and labels."""

import json
from typing import Any

import pyarrow as pa
import pytest

from pipelines.sources.options import SourceOptions
from pipelines.sources.parquet_columns import Columns, check_same, find_columns
from tests.refusals import refused

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
BYTES, NUMBER, TEXT = pa.large_binary(), pa.int32(), pa.string()


def schema(features: dict[str, Any] | None = None, **columns: pa.DataType) -> pa.Schema:
    """A schema as `datasets` writes it."""
    described = json.dumps({"info": {"features": features or {}}})
    return pa.schema(list(columns.items()), {"huggingface": described})


def class_label(*names: str) -> dict[str, Any]:
    return {"_type": "ClassLabel", "names": list(names)}


def find(one: pa.Schema, **options: str) -> Columns:
    return find_columns("x", one, SourceOptions(**options))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        ({"picture": BYTES, "number": NUMBER}, ("picture", None)),  # a number alone is no label
        ({"picture": BYTES, "text": TEXT}, ("picture", None)),  # nor is a text
        ({"other": BYTES, "image": STRUCT, "label": NUMBER}, ("image", "label")),
        ({"jpg": STRUCT, "mask": BYTES, "cls": NUMBER}, ("jpg", "cls")),
        ({"img": STRUCT, "png": BYTES, "image": BYTES}, ("image", None)),
        ({"image": STRUCT, "class": TEXT}, ("image", "class")),
        ({"image": STRUCT, "class": pa.list_(NUMBER)}, ("image", None)),
        ({"image": STRUCT, "label": pa.dictionary(NUMBER, TEXT)}, ("image", "label")),
    ],
)
def test_columns_by_name_or_by_kind(columns: dict[str, pa.DataType], found: tuple[str, str | None]):
    image, label = found
    text = label is not None and columns[label] != NUMBER
    assert find(schema(None, **columns)) == Columns("x", image, label, None, text)


def test_columns_by_what_the_schema_says_of_them():
    features = {"photo": {"_type": "Image"}, "kind": class_label("ant", "bee")}
    one = schema(features, photo=STRUCT, audio=STRUCT, kind=NUMBER, cls=NUMBER)
    assert find(one) == Columns("x", "photo", "kind", ("ant", "bee"))
    broken = one.with_metadata({"huggingface": '{"info": []}'})
    assert "more than one column of images" in refused(lambda: find(broken))


def test_columns_that_are_said():
    features = {"fine": class_label("a", "b"), "coarse": class_label("c")}
    one = schema(features, img=STRUCT, mask=BYTES, fine=NUMBER, coarse=NUMBER, text=TEXT)
    assert refused(lambda: find(one)) == (
        "x: more than one column of labels: fine, coarse; choose one with --label-column"
    )
    assert find(one, label="coarse") == Columns("x", "img", "coarse", ("c",))
    assert find(one, label="text", image="mask") == Columns("x", "mask", "text", None, True)
    assert find(one, classes="none") == Columns("x", "img", None, None)
    told = refused(lambda: find(one, classes="none", label="fine"))
    assert "--label-column and --classes none" in told
    told = refused(lambda: find(one, label="class"))
    assert told == "x: no column class (--label-column); it has img, mask, fine, coarse, text"
    told = refused(lambda: find(one, label="img"))
    assert told.startswith("x: the column img holds struct")
    assert refused(lambda: find(one, image="fine")) == (
        "x: the column fine holds int32, not bytes of images"
    )


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"text": TEXT}, "no column of images (a struct with bytes, or bytes); it has text"),
        ({"a": BYTES, "b": BYTES}, "more than one column of images"),
        ({"jpg": BYTES, "png": BYTES}, "jpg, png; choose one with --image-column"),
        ({"image": BYTES, "label": pa.float64()}, "the column label holds double"),
        ({"images": pa.list_(STRUCT)}, "no column of images"),
    ],
)
def test_columns_that_cannot_be_meant(columns: dict[str, pa.DataType], told: str):
    line = refused(lambda: find(schema(None, **columns)))
    assert told in line
    assert line.startswith("x: ")


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"image": STRUCT, "label": TEXT}, "the column label holds texts, and numbers in x;"),
        ({"image": TEXT, "label": NUMBER}, "the column image holds string, not bytes of images"),
        ({"image": STRUCT}, "has no column label, as the first file has"),
        ({"img": STRUCT, "label": NUMBER}, "has no column image, as the first file has"),
    ],
)
def test_files_of_other_columns_are_refused(columns: dict[str, pa.DataType], told: str):
    first = find(schema(None, image=STRUCT, label=NUMBER))
    check_same("y", schema(None, id=TEXT, label=pa.int8(), image=BYTES), first, SourceOptions())
    line = refused(lambda: check_same("y", schema(None, **columns), first, SourceOptions()))
    assert line.startswith(f"y: {told}")


def test_classes_that_are_not_asked_for_may_differ():
    none = SourceOptions("none")
    one = schema({"label": class_label("a")}, image=STRUCT, label=NUMBER)
    columns = find_columns("x", one, none)
    check_same("y", schema({"label": class_label("b")}, image=STRUCT, label=NUMBER), columns, none)
    check_same("y", schema(None, image=STRUCT), columns, none)
