import json

import pytest
from pydantic import Field

from schemas.growing import Growing


class Before(Growing):
    name: str


class After(Growing):
    added = ("flavour", "layers")

    name: str
    flavour: str = "plain"
    layers: int | None = None


class Holder(Growing):
    inner: After


def test_a_field_at_its_default_leaves_the_text_as_it_was():
    assert After(name="a").model_dump_json(indent=2) == Before(name="a").model_dump_json(indent=2)
    assert After.model_validate_json(Before(name="a").model_dump_json()) == After(name="a")


def test_a_field_that_says_something_is_written_and_read_back():
    sweet = After(name="a", flavour="sweet", layers=2)
    assert json.loads(sweet.model_dump_json()) == {"name": "a", "flavour": "sweet", "layers": 2}
    assert After.model_validate_json(sweet.model_dump_json()) == sweet


def test_nested_tables_and_exclusions_are_as_ever():
    holder = Holder(inner=After(name="a", flavour="sweet"))
    assert holder.model_dump(exclude={"inner": {"flavour"}}) == {"inner": {"name": "a"}}
    assert Holder(inner=After(name="a")).model_dump() == {"inner": {"name": "a"}}


def test_what_is_left_out_is_there_where_tables_are_compared():
    everything = Holder(inner=After(name="a")).every_field()
    assert everything == {"inner": {"name": "a", "flavour": "plain", "layers": None}}


def test_fields_that_could_not_be_left_out_are_refused_where_they_are_declared():
    with pytest.raises(AssertionError, match="needs a default"):

        class Required(Growing):
            added = ("name",)
            name: str

    with pytest.raises(AssertionError, match="needs a plain default"):

        class Made(Growing):
            added = ("names",)
            names: list[str] = Field(default_factory=list)

    with pytest.raises(AssertionError, match=r"added lacks \{'flavour'"):

        class Forgetful(After):
            added = ("layers",)
