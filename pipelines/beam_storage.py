"""Object stores connected as Beam was told: its options, and the credentials that it chooses.

Where Beam was told nothing, the environment says how to connect, and Beam is not even imported.
"""

import os
import sys
from functools import cache
from typing import Any

from schemas.storage.objects import (
    EMULATOR,
    GoogleStore,
    ObjectStore,
    S3Store,
    connect_by_environment,
)


def connect(scheme: str) -> ObjectStore:
    """The store of a scheme, with the options that Beam gave its file systems; one connection for
    the same options.

    In a worker they are those of the job, in a command those after `--`.
    """
    module = sys.modules.get("apache_beam.io.filesystems")
    # Beam has no way to ask for what it was told
    options = None if module is None else module.FileSystems._pipeline_options
    return connect_by_environment(scheme) if options is None else _connect(scheme, options)


@cache
def _connect(scheme: str, options: Any) -> ObjectStore:
    return _s3(options) if scheme == "s3" else _google(options)


def _s3(options: Any) -> S3Store:
    """The client that Beam would make, but for what `S3Store` settles itself."""
    from apache_beam.options.pipeline_options import S3Options

    given = options.view_as(S3Options)
    return S3Store(
        region_name=given.s3_region_name,
        api_version=given.s3_api_version,
        use_ssl=not given.s3_disable_ssl,
        verify=given.s3_verify,
        endpoint_url=given.s3_endpoint_url,
        aws_access_key_id=given.s3_access_key_id,
        aws_secret_access_key=given.s3_secret_access_key,
        aws_session_token=given.s3_session_token,
    )


def _google(options: Any) -> GoogleStore:
    from apache_beam.io.gcp.gcsio import GcsIO, create_storage_client

    # An emulator asks for no credentials, and looking for them takes Beam half a minute where there
    # are none.
    client = (
        create_storage_client(options, use_credentials=False) if EMULATOR in os.environ else None
    )
    return GoogleStore(GcsIO(storage_client=client, pipeline_options=options).client)
