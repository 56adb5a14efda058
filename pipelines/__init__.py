"""Images to latents: Apache Beam pipelines, autoencoders, latent datasets.

cli, data_cli: the commands `preprocess` and `data`; images: decoding and cropping; grid: images
side by side in one picture; option_types: numbers of the command line; beam_storage: object stores
under the options that Beam was given.
Rooms (packages in this one): curate, preprocess, encoders, sources, dataset, runners.
"""

from typing import TYPE_CHECKING

from schemas.storage.connection import connect_with

if TYPE_CHECKING:
    from schemas.storage.store import ObjectStore


def _connect(scheme: str) -> "ObjectStore":
    from pipelines.beam_storage import connect  # not while a command shows its help

    return connect(scheme)


# In worker processes too, which import this package with whatever they are sent.
connect_with(_connect)
