"""`tfds:NAME`: a prepared TensorFlow Datasets builder, read without TensorFlow.

Only builders in the array_record format have random access. Records are read by position; what a
record holds, its label included, is known when it is read. TFDS's own data source keeps every shard
open that was read from, and decodes all features: a thousand open files, and no way to object
stores.
"""

import threading
from collections.abc import Iterator
from functools import cached_property

from pipelines.images import ImageError, decode_image
from pipelines.sources.base import UNLABELLED, Item, Picture, Source
from pipelines.sources.keeper import Keeper
from pipelines.sources.tfds_builder import Split, builder_digest, builder_directory, open_split
from schemas.storage import paths

SHARDS_KEPT = 3  # open at a time; rows of a shard stay together


class TfdsSource(Source):
    """A split of a builder; without a class label in its records it has one class.

    A shard on an object store is copied to the local disk as a whole, for as long as it is read
    from.

    Args:
        name: `imagenet2012`, `celeb_a_hq/256`, `NAME@DATA_DIR`, or the directory or URL of a
            builder (which holds `dataset_info.json`). Without DATA_DIR, TFDS looks where it always
            does, TFDS_DATA_DIR included.
        split: of the builder.

    Raises:
        UserError: no such builder on the local disk. An object store is asked when it is listed.
    """

    def __init__(self, name: str, split: str):
        self._directory = builder_directory(name)
        self.descriptor = f"tfds:{self._directory}"
        self.split = split
        self._kept = Keeper(SHARDS_KEPT)
        self._lock = threading.Lock()
        self._cached: Split | None = None

    def __reduce__(self) -> tuple[type["TfdsSource"], tuple[str, str]]:
        return type(self), (self._directory, self.split)

    @cached_property
    def fingerprint(self) -> str:
        """Of the files that describe the builder."""
        return builder_digest(self._directory)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._open().classes

    def index(self) -> Iterator[Item]:
        opened, row = self._open(), 0
        label = 0 if opened.label is None else UNLABELLED
        for number, (name, records, modified) in enumerate(opened.shards):
            for place in range(records):
                yield Item(
                    f"{self.split}/{row:07d}", label, 0, f"{number}:{place}", modified, group=name
                )
                row += 1

    def read(self, item: Item) -> Picture:
        from google.protobuf.message import DecodeError
        from tensorflow_datasets.proto import tf_example_pb2

        opened = self._open()
        number, place = map(int, item.location.split(":"))
        shard = self._kept.get(number, lambda: self._open_shard(*opened.shards[number][:2]))
        record = shard.read(place)
        example_class = tf_example_pb2.Example  # pyright: ignore[reportAttributeAccessIssue]
        try:
            parsed = example_class.FromString(record)
        except DecodeError as error:
            raise ImageError("its record is not a tf.train.Example", "DecodeError") from error
        example = parsed.features.feature
        images = example[opened.image].bytes_list.value
        labels = [0] if opened.label is None else example[opened.label].int64_list.value
        if len(images) != 1 or len(labels) != 1:
            raise ImageError(
                "its record holds no image" if len(images) != 1 else "its record holds no label"
            )
        if not 0 <= labels[0] < len(opened.classes):
            raise ImageError(f"has no label: {labels[0]} is none of {len(opened.classes)} classes")
        return Picture(decode_image(images[0]), labels[0])

    def _open(self) -> Split:
        with self._lock:
            if self._cached is None:
                self._cached = open_split(self._directory, self.split)
            return self._cached

    def _open_shard(self, name: str, records: int) -> "_OpenShard":
        path = paths.join(self._directory, name)
        with paths.local_copy(path) as local:  # an open file outlives its name
            return _OpenShard(str(local), records, path)


class _OpenShard:
    """An array_record file, open.

    Raises:
        OSError: it is not whole.
    """

    def __init__(self, path: str, records: int, shown: str):
        from array_record.python.array_record_module import ArrayRecordReader

        self._reader = ArrayRecordReader(
            path, options="readahead_buffer_size:0", file_reader_buffer_size=32768
        )
        # not every version of the reader takes calls from several threads
        self._lock = threading.Lock()
        if not self._reader.ok() or self._reader.num_records() != records:
            raise OSError(
                f"{shown} is damaged: it does not hold its {records} records; prepare the builder "
                "again"
            )

    def read(self, place: int) -> bytes:
        """A record.

        Raises:
            ImageError: it is damaged.
        """
        try:
            with self._lock:
                return self._reader.read([place])[0]
        # array_record has no kinds of its own
        except (RuntimeError, ValueError, IndexError) as error:
            raise ImageError(
                "its record cannot be read: the shard is damaged", type(error).__name__
            ) from error
