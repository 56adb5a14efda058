"""Tables on disk may gain fields, and those written before keep their bytes and digests.

A field that was added later is left out of the JSON where it says what was true before there was
such a field. So a manifest, a run or the settings of an earlier commit give the same text again,
and the digests taken of that text (of datasets, of runs, of half-made work) stay what they were.
"""

from typing import Any, ClassVar

from pydantic import (
    BaseModel,
    ConfigDict,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)

_EVERY_FIELD = "every field"  # asked of the serializer, of nested tables too


class Growing(BaseModel):
    """A frozen table on disk. `added` names later fields, whose defaults were true before. Numbers
    are finite: nan would pass any comparison that is to refuse it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    added: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def __pydantic_init_subclass__(cls, **options: Any) -> None:
        super().__pydantic_init_subclass__(**options)
        for name in cls.added:
            assert not cls.model_fields[name].is_required(), (
                f"{cls.__name__}.{name} needs a default"
            )
            assert cls.model_fields[name].default_factory is None, (
                f"{cls.__name__}.{name} needs a plain default"
            )
        inherited = {name for base in cls.__mro__[1:] for name in getattr(base, "added", ())}
        assert inherited <= {*cls.added}, f"{cls.__name__}.added lacks {inherited - {*cls.added}}"

    def every_field(self) -> dict[str, Any]:
        """As JSON, with what the file leaves out: to be compared with another, or shown."""
        return self.model_dump(mode="json", context=_EVERY_FIELD)

    @model_serializer(mode="wrap")
    def _leave_out_unsaid(
        self, serialize: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        content = serialize(self)
        if info.context == _EVERY_FIELD:
            return content
        for name in self.added:
            if getattr(self, name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content
