"""Whether a directory is the dataset of some settings, and what is told where it is another one.

A directory belongs to one `Settings`. Whoever comes back with others is told what differs, and
nothing is touched.
"""

import functools

from pipelines.dataset.build import Identity, ShardedBuild
from pipelines.preprocess.index import INDEX_NAME
from pipelines.preprocess.settings import Settings, differences, parse_settings
from schemas.manifest import SETTINGS_NAME, Manifest
from schemas.sealed import seal
from schemas.storage.directory import Directory

_NAMED = 3  # of the differences, so that the line can be read
# what differs where the source has gained, lost or renamed images
_OF_THE_SOURCE = {"source_state", "source.digest", "records", "duplicates", "classes"}


def dataset_build(directory: Directory, settings: Settings) -> ShardedBuild:
    """The build of a dataset; its shards can be made once the index is there."""
    root = directory.root
    identity = Identity(
        name=SETTINGS_NAME,
        text=seal(settings.model_dump_json(indent=2) + "\n"),
        refusal=functools.partial(_refusal, root, settings),
        made=functools.partial(_made, settings),
        occupied=lambda entry: (
            f"{root} is not empty ({entry}) and was not begun by `flowtrain preprocess`; choose "
            "another output directory"
        ),
    )
    return ShardedBuild(directory, identity, settings.work, f"{settings.work}/{INDEX_NAME}")


def _refusal(root: str, settings: Settings, content: bytes, finished: bool) -> str | None:
    """How the settings that a directory was begun with differ; `UserError` if they are damaged."""
    begun = parse_settings(content, root)
    if finished:  # its bytes stand; who reads them need not have the versions that made them
        settings = settings.model_copy(update={"versions": begun.versions})
    changed = differences(begun, settings)
    if not changed:
        return None
    names = {name.partition(":")[0] for name in changed}
    descriptor = settings.source.descriptor
    if names == {"source_state"}:
        return (
            f"images of {descriptor} have changed since {root} was begun: names and sizes are the "
            "same, the modification times or places are not; restore them, or choose another "
            "output directory"
        )
    if names <= _OF_THE_SOURCE:
        return (
            f"{descriptor} has changed since {root} was begun: it listed {begun.records} images "
            f"then and lists {settings.records} now, or others; restore it, or choose another "
            "output directory"
        )
    more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
    state = "a finished dataset" if finished else "a half-made dataset"
    return (
        f"{root} holds {state} with other settings ({'; '.join(changed[:_NAMED])}{more}); repeat "
        "its own command, or choose another output directory"
    )


def _made(settings: Settings, manifest: Manifest) -> bool:
    """Whether a finished dataset was made with these settings, as far as its manifest tells."""
    made = manifest.command, manifest.source, manifest.vae, manifest.classes, manifest.versions
    return made == (
        settings.command(),
        settings.source,
        settings.vae,
        settings.classes,
        settings.versions,
    )
