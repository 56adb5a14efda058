"""A dataset that is made shard by shard, and may be killed at any moment.

A directory is claimed by a file that says what it is to become (`Identity`), before anything else
is written. Then each shard is made once (`ShardedBuild.shard`), and the manifest is written last
(`ShardedBuild.finish`). Who comes after a kill looks at what is there (`Claim.resume`): a finished
dataset, which is left alone; a finished one that has lost files, which becomes a half-made one
again; or a half-made one, of which the missing shards are made. That is decided here and nowhere
else.

`preprocess` and `data merge` are `ShardedBuild`s. A set of samples is a `Claim`: its shards need no
marker. Parts of statistics, which are no dataset, share `identity_key` and `made_once`.
"""

import hashlib
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from pipelines.dataset.finished import dataset_whole, finish_dataset
from pipelines.dataset.shard_results import (
    Reject,
    ShardResult,
    read_marker,
    recall_markers,
    remove_markers,
    write_marker,
)
from schemas.errors import UserError
from schemas.manifest import (
    MANIFEST_NAME,
    REJECTS_NAME,
    RESULTS_NAME,
    Manifest,
    parse_manifest,
)
from schemas.storage import paths
from schemas.storage.directory import GONE, WORK, Directory

_KEY_DIGITS = 16
T = TypeVar("T")


def identity_key(text: str) -> str:
    """The name of a folder for work that depends on `text` alone: 16 hex digits of its SHA-256.

    So nobody takes over what was begun as something different.
    """
    return hashlib.sha256(text.encode()).hexdigest()[:_KEY_DIGITS]


def made_once(whole: Callable[[], T | None], make: Callable[[], T]) -> T:
    """A unit of work: as an earlier run left it, or made now.

    Args:
        whole: gives the unit that is there, None where it is missing, cut or of something else.
        make: makes it, so that `whole` finds it from the moment at which it is done.
    """
    found = whole()
    return make() if found is None else found


@dataclass(frozen=True)
class Identity:
    """All that decides the bytes of a dataset, as the file that claims a directory for it.

    Attributes:
        name: of the file, which stays in the finished dataset.
        text: what it holds.
        refusal: takes the content of a file that is there, and whether the dataset is finished;
            gives the line that names the differences, None where it claims the same dataset.
        made: whether a finished dataset that has lost the file is this one, as far as its manifest
            tells.
        occupied: gives the line about a directory of something else, one entry of which it takes.
    """

    name: str
    text: str
    refusal: Callable[[bytes, bool], str | None]
    made: Callable[[Manifest], bool]
    occupied: Callable[[str], str]


def accept_any(manifest: Manifest) -> None:
    """No finished dataset is refused."""


@dataclass(frozen=True)
class Claim:
    """A directory, and the dataset that it is to hold. Methods raise OSError when storage fails."""

    directory: Directory
    identity: Identity

    def check_ownership(self) -> None:
        """Refuse a directory that belongs to something else. Reads only.

        Raises:
            UserError: it holds other files, or a dataset of another identity; the differences are
                named.
        """
        begun = self._read(self.identity.name)
        if begun is not None:
            finished = self.directory.exists(MANIFEST_NAME)
            refusal = self.identity.refusal(begun, finished)
            if refusal is not None:
                raise UserError(refusal)
            return
        content = self._read(MANIFEST_NAME)
        if content is not None and self.identity.made(self._parsed(content)):
            return  # the identity file was lost
        foreign = [name for name in self.directory.names() if not self._is_left_over(name)]
        if self.identity.name in foreign:  # another command began between our two looks
            self.check_ownership()
        elif foreign:
            raise UserError(self.identity.occupied(foreign[0]))

    def take(self) -> None:
        """Write the identity down, unless it is there. It is never changed afterwards.

        Raises:
            UserError: another command has come first, with another identity.
        """
        if self._read(self.identity.name) is None:
            with suppress(FileExistsError):
                self.directory.create(self.identity.name, self.identity.text)
                return
        self.check_ownership()

    def finished(self, accept: Callable[[Manifest], None] = accept_any) -> Manifest | None:
        """The manifest, when the dataset is finished and no file of it is missing or cut.

        Args:
            accept: raises UserError for a finished dataset that is not good enough.
        """
        content = self._read(MANIFEST_NAME)
        return None if content is None else self._if_whole(self._parsed(content), accept)

    def resume(
        self,
        reopen: Callable[[Manifest], None],
        accept: Callable[[Manifest], None] = accept_any,
    ) -> Manifest | None:
        """The finished dataset, if there is one: what the holder of the lock asks first.

        The directory must be ours, and what a killed run left half-written is cleared away. Where a
        finished dataset has lost files its manifest goes, and only what is damaged is made again.

        In an object store another command may finish or mend the dataset between any two of our
        requests. So a manifest goes only when it was read twice and its dataset found wanting
        twice, the second time just before.

        Args:
            reopen: is called before the manifest goes, to drop what must not be believed without
                it; may raise UserError where the dataset cannot be mended.
            accept: as for `finished`.

        Returns:
            The manifest of the finished dataset, or None where there are shards to make.

        Raises:
            UserError: the directory belongs to something else, or a line of `reopen` or `accept`.
        """
        self.check_ownership()
        self.directory.sweep()
        wanting = None
        while True:
            content = self._read(MANIFEST_NAME)
            if content is None:
                return None
            manifest = self._parsed(content)
            whole = self._if_whole(manifest, accept)
            if whole is not None:
                return whole
            if content == wanting:
                self.directory.remove(MANIFEST_NAME)
                return None
            # By its manifest the directory is ours; without it, only the identity file says so.
            self.take()
            reopen(manifest)
            wanting = content

    def _is_left_over(self, name: str) -> bool:
        """Whether a killed run may have left this before the directory was claimed."""
        return name.startswith(f".{self.identity.name}")

    def _if_whole(self, manifest: Manifest, accept: Callable[[Manifest], None]) -> Manifest | None:
        accept(manifest)
        return manifest if dataset_whole(self.directory.root, manifest) else None

    def _parsed(self, content: bytes) -> Manifest:
        return parse_manifest(content, paths.join(self.directory.root, MANIFEST_NAME))

    def _read(self, name: str) -> bytes | None:
        try:
            return self.directory.read(name)
        except FileNotFoundError:
            return None


@dataclass(frozen=True)
class ShardedBuild(Claim):
    """A dataset whose shards are marked as done, one by one, in a folder that goes at the end.

    Attributes:
        work: the folder, named for the identity (`identity_key`).
        ready: name of the file, in that folder, from which on shards can be made.
    """

    work: str
    ready: str

    @property
    def prepared(self) -> bool:
        """Whether shards can be made."""
        return self.directory.exists(self.ready)

    def prepare(
        self,
        make_ready: Callable[[str], None],
        as_made: Callable[[str], bool] = lambda name: True,
    ) -> None:
        """Bring the directory to the state in which shards can be made.

        It is claimed, and the shards that it holds from when it was finished are marked; then comes
        `ready`, which `make_ready` writes under the name that it is given.

        Args:
            make_ready: writes the file.
            as_made: whether a file of that name that is there holds what `make_ready` would write.
                Of one that was damaged nobody knows which shards were made by it: all marks go.
        """
        self.take()
        if self.prepared and not as_made(self.ready):
            self._forget()
        if not self.prepared:
            recall_markers(self.directory, self.work)
            make_ready(self.ready)

    def _forget(self) -> None:
        """Begin again: no shard is done. `ready` goes last: a kill before that changes nothing."""
        remove_markers(self.directory, self.work)
        self.directory.remove(self.ready)

    def check_ours(self) -> None:
        """Ask before anything is published whether it is still wanted.

        Identity or `ready` are gone where another command has finished the dataset meanwhile, or
        somebody has deleted it and begun another one while a worker of ours, cut off from its
        command, was still at work.

        Raises:
            UserError: they are.
        """
        begun = self._read(self.identity.name)
        same = begun is not None and self.identity.refusal(begun, False) is None
        if not same or not self.prepared:
            raise UserError(
                f"{self.directory.root} was finished or begun anew by another command meanwhile; "
                "repeat the command"
            )

    def shard(self, number: int, make: Callable[[], ShardResult]) -> ShardResult:
        """A shard, made unless it is marked as done and its files are those of the marker.

        Args:
            number: which shard.
            make: publishes its files.
        """

        def make_and_mark() -> ShardResult:
            result = make()
            write_marker(self.directory, self.work, result)
            return result

        return made_once(lambda: read_marker(self.directory, self.work, number), make_and_mark)

    def write_rejects(self, results: Sequence[ShardResult]) -> list[Reject]:
        """Write down what the shards left out, and return it, sorted by key."""
        rejects = sorted(
            (reject for result in results for reject in result.rejects),
            key=lambda reject: reject.key,
        )
        lines = "".join(reject.model_dump_json() + "\n" for reject in rejects)
        self.directory.write(REJECTS_NAME, lines)
        return rejects

    def finish(
        self, manifest: Manifest, results: Sequence[ShardResult], others: Sequence[str] = ()
    ) -> Manifest:
        """Make the shards a dataset: their results, then the metadata, and the manifest last.

        Args:
            manifest: all that is known but for `files`.
            results: of all shards, in order; their rejects have been written.
            others: further files that belong to the dataset.

        Returns:
            The manifest as it was written.
        """
        lines = "".join(result.model_dump_json() + "\n" for result in results)
        self.directory.write(RESULTS_NAME, lines)
        named = (REJECTS_NAME, RESULTS_NAME, *others)
        return finish_dataset(self.directory, manifest, others=named)

    def clear_away(self) -> None:
        """Delete what only a run in progress needs: the last thing a command does."""
        self.directory.clear_work()

    def _is_left_over(self, name: str) -> bool:
        return name == WORK or name.startswith(GONE) or super()._is_left_over(name)
