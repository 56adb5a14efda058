"""Tables on disk may gain fields, and those written before keep their bytes and digests.

A field that was added later is left out of the JSON where it says what was true before there was
such a field. So a manifest, a run or the settings of an earlier commit give the same text again,
and the digests taken of that text (of datasets, of runs, of half-made work) stay what they were.
"""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer


class Growing(BaseModel):
    """A frozen table on disk. `added` names later fields, whose defaults were true before."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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

    @model_serializer(mode="wrap")
    def _leave_out_unsaid(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        content = serialize(self)
        for name in self.added:
            if getattr(self, name) == type(self).model_fields[name].default:
                content.pop(name, None)
        return content
