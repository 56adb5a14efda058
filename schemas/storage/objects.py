"""Object stores, `s3://` and `gs://`, by their vendors' clients, which are imported when a URL is
first used.

Where to connect and with which credentials says the environment, as the clients read it, unless
another way to connect is handed in (`schemas.storage.connection`).
"""

import os
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from schemas.errors import UserError
from schemas.files import sha256_file
from schemas.storage.connection import connected_with
from schemas.storage.retries import repeated
from schemas.storage.store import Entry, Facts, ObjectStore

CONNECTIONS = 64  # kept open by a process; more than it has threads that read at once
SINGLE_UPLOAD = 64 << 20  # bytes that travel in one request
PAGE = 1000  # entries in an answer to a listing, at most; S3 gives no more
CHECKSUM = "sha256"  # name of the note on an object
EMULATOR = "STORAGE_EMULATOR_HOST"  # a variable of the environment that Google's client reads
BINARY = "application/octet-stream"


class Page(NamedTuple):
    """A piece of a listing; `more` asks for the one after it, None where it is the last."""

    entries: list[Entry]
    more: str | None


class S3Store(ObjectStore):
    """Amazon S3 and whatever speaks its protocol, through boto3.

    Args:
        options: of `boto3.session.Session.client`, such as `endpoint_url` or `aws_access_key_id`.
    """

    def __init__(self, **options: Any):
        from boto3.s3.transfer import TransferConfig
        from boto3.session import Session
        from botocore.config import Config

        # Left to itself the client repeats a request, as `schemas.storage.retries` does, and serves
        # ten threads at once.
        config = Config(retries={"total_max_attempts": 1}, max_pool_connections=CONNECTIONS)
        self._client = Session().client("s3", config=config, **options)
        # In one piece where possible: of an upload in parts that is killed the parts stay, unseen
        # and paid for.
        self._transfer = TransferConfig(
            multipart_threshold=SINGLE_UPLOAD, multipart_chunksize=SINGLE_UPLOAD
        )

    @repeated
    def read(self, url: str, offset: int = 0, length: int = -1) -> bytes:
        if length == 0:
            return b""
        wanted: dict[str, str] = {}
        if offset or length > 0:
            wanted["Range"] = f"bytes={offset}-{offset + length - 1 if length > 0 else ''}"
        try:
            return self._client.get_object(**_bucket_key(url), **wanted)["Body"].read()
        except Exception as error:
            if self.status(error) == 416:  # nothing lies there: the end of the object, or beyond
                return b""
            raise

    @repeated
    def facts(self, url: str) -> Facts:
        head = self._client.head_object(**_bucket_key(url))
        modified = int(head["LastModified"].timestamp() * 1e9)
        return Facts(head["ContentLength"], head["Metadata"].get(CHECKSUM), modified)

    def entries(self, root: str) -> Iterator[Entry]:
        return _in_pages(partial(self.page, root))

    @repeated
    def page(self, root: str, more: str | None) -> Page:
        """Objects below `root/`: the first ones, or those that `more` asks for."""
        place = _bucket_key(root)
        prefix = _prefix(place["Key"])
        on = {} if more is None else {"ContinuationToken": more}
        answer = self._client.list_objects_v2(
            Bucket=place["Bucket"], Prefix=prefix, MaxKeys=PAGE, **on
        )
        entries = [
            Entry(
                found["Key"].removeprefix(prefix),
                found["Size"],
                int(found["LastModified"].timestamp() * 1e9),
            )
            for found in answer.get("Contents", ())
        ]
        return Page(entries, answer.get("NextContinuationToken") or None)

    @repeated
    def write(self, url: str, data: bytes) -> None:
        self._client.put_object(**_bucket_key(url), Body=data)

    @repeated
    def create(self, url: str, data: bytes) -> None:
        self._client.put_object(**_bucket_key(url), Body=data, IfNoneMatch="*")

    @repeated
    def publish(self, url: str, staged: Path) -> None:
        note = {"Metadata": {CHECKSUM: sha256_file(staged)}}
        self._client.upload_file(
            Filename=str(staged), **_bucket_key(url), ExtraArgs=note, Config=self._transfer
        )

    @repeated
    def download(self, url: str, local: Path) -> None:
        self._client.download_file(Filename=str(local), **_bucket_key(url), Config=self._transfer)

    @repeated
    def delete(self, url: str) -> None:
        self._client.delete_object(**_bucket_key(url))

    def status(self, error: Exception) -> int | None:
        """See `schemas.storage.retries.Client`."""
        from boto3.exceptions import RetriesExceededError, S3UploadFailedError
        from botocore.exceptions import (
            BotoCoreError,
            ClientError,
            NoCredentialsError,
            PartialCredentialsError,
        )

        cause = (
            error.__context__
            if isinstance(error, S3UploadFailedError) and error.__context__
            else error
        )
        if isinstance(cause, ClientError):
            return cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if isinstance(cause, (NoCredentialsError, PartialCredentialsError)):
            return 401  # asking again would not help
        return (
            0
            if isinstance(cause, (BotoCoreError, S3UploadFailedError, RetriesExceededError))
            else None
        )


class GoogleStore(ObjectStore):
    """Google Cloud Storage, through google-cloud-storage.

    `retry=None` everywhere: `schemas.storage.retries` repeats what fails.

    Args:
        client: a `google.cloud.storage.Client`; None for one with the credentials of this machine,
            or without any where it has none. Emulators are found by STORAGE_EMULATOR_HOST and are
            asked without credentials.
    """

    def __init__(self, client: Any = None):
        from requests.adapters import HTTPAdapter

        self._client = _google_client() if client is None else client
        for scheme in ("https://", "http://"):
            self._client._http.mount(scheme, HTTPAdapter(pool_maxsize=CONNECTIONS))

    @repeated
    def read(self, url: str, offset: int = 0, length: int = -1) -> bytes:
        if length == 0:
            return b""
        end = offset + length - 1 if length > 0 else None
        try:
            return self._blob(url).download_as_bytes(start=offset or None, end=end, retry=None)
        except Exception as error:
            if self.status(error) == 416:
                return b""
            raise

    @repeated
    def facts(self, url: str) -> Facts:
        blob = self._blob(url)
        blob.reload(retry=None)
        modified = int(blob.updated.timestamp() * 1e9) if blob.updated else 0
        return Facts(blob.size or 0, (blob.metadata or {}).get(CHECKSUM), modified)

    def entries(self, root: str) -> Iterator[Entry]:
        return _in_pages(partial(self.page, root))

    @repeated
    def page(self, root: str, more: str | None) -> Page:
        """Objects below `root/`: the first ones, or those that `more` asks for."""
        place = _bucket_key(root)
        prefix = _prefix(place["Key"])
        listing = self._client.list_blobs(
            place["Bucket"],
            prefix=prefix,
            page_token=more,  # pyright: ignore[reportArgumentType]
            page_size=PAGE,
            retry=None,  # pyright: ignore[reportArgumentType]
        )
        entries = [
            Entry(
                blob.name.removeprefix(prefix),
                blob.size or 0,
                int(blob.updated.timestamp() * 1e9) if blob.updated else 0,
            )
            for blob in next(listing.pages)
        ]
        return Page(entries, listing.next_page_token or None)

    @repeated
    def write(self, url: str, data: bytes) -> None:
        self._blob(url).upload_from_string(data, content_type=BINARY, retry=None)

    @repeated
    def create(self, url: str, data: bytes) -> None:
        self._blob(url).upload_from_string(
            data, content_type=BINARY, retry=None, if_generation_match=0
        )

    @repeated
    def publish(self, url: str, staged: Path) -> None:
        blob = self._blob(url)
        blob.metadata = {CHECKSUM: sha256_file(staged)}
        blob.upload_from_filename(str(staged), content_type=BINARY, retry=None, checksum="crc32c")

    @repeated
    def download(self, url: str, local: Path) -> None:
        self._blob(url).download_to_filename(str(local), retry=None)

    @repeated
    def delete(self, url: str) -> None:
        try:
            self._blob(url).delete(retry=None)
        except Exception as error:
            if self.status(error) != 404:
                raise

    def status(self, error: Exception) -> int | None:
        """See `schemas.storage.retries.Client`."""
        from google.api_core.exceptions import GoogleAPICallError, RetryError
        from google.auth.exceptions import GoogleAuthError, TransportError

        # where it comes from differs between versions
        from google.cloud.storage.blob import (
            DataCorruption,
        )
        from requests.exceptions import RequestException

        if isinstance(error, GoogleAPICallError):
            return int(error.code or 0)
        if isinstance(error, GoogleAuthError) and not isinstance(error, TransportError):
            return 401
        return (
            0
            if isinstance(error, (RetryError, TransportError, RequestException, DataCorruption))
            else None
        )

    def _blob(self, url: str) -> Any:
        place = _bucket_key(url)
        return self._client.bucket(place["Bucket"]).blob(place["Key"])


def _in_pages(page: Callable[[str | None], Page]) -> Iterator[Entry]:
    """A listing; a page is asked for when those before it are used up."""
    found = page(None)
    yield from found.entries
    while found.more is not None:
        found = page(found.more)
        yield from found.entries


def _google_client() -> Any:
    from google.auth.exceptions import DefaultCredentialsError
    from google.cloud.storage import Client

    # to look for credentials takes half a minute where there are none
    if EMULATOR not in os.environ:
        try:
            return Client()
        except DefaultCredentialsError:  # what anyone may read can be read
            pass
    return Client.create_anonymous_client()


STORES: dict[str, Callable[[], ObjectStore]] = {"s3": S3Store, "gs": GoogleStore}
_EXTRA = "install the clients of the object stores: pip install 'flowtrain[cloud]'"


def object_store(url: str) -> ObjectStore:
    """The store of a URL: one connection a process and way to connect.

    Raises:
        UserError: another kind of store, no bucket, or its client is not installed.
    """
    scheme = urlsplit(url).scheme
    if scheme not in STORES:
        known = " and ".join(f"{name}://" for name in STORES)
        raise UserError(f"{url}: no such kind of storage; known are local paths, {known}")
    if not _bucket_key(url)["Bucket"]:
        raise UserError(f"{url}: no bucket; give {scheme}://BUCKET/PATH")
    try:
        return (connected_with() or connect_by_environment)(scheme)
    except (ImportError, RuntimeError) as error:
        raise UserError(f"{scheme}:// cannot be used here ({error}); {_EXTRA}") from error


@cache
def connect_by_environment(scheme: str) -> ObjectStore:
    """The store of a scheme, as the vendor's client finds it: environment variables and files of
    credentials.
    """
    return STORES[scheme]()


def _bucket_key(url: str) -> dict[str, str]:
    _, _, rest = url.partition("://")  # not urlsplit, for which ? and # in a name would end it
    bucket, _, key = rest.partition("/")
    return {"Bucket": bucket, "Key": key}


def _prefix(key: str) -> str:
    return f"{key.rstrip('/')}/" if key.strip("/") else ""
