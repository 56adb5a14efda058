"""Images to latents: Apache Beam pipelines, autoencoders, latent datasets.

cli, data_cli: the commands `preprocess` and `data`; images: decoding and cropping; grid: images
side by side in one picture; beam_storage: object stores under the options that Beam was given.
Rooms (packages in this one): curate, preprocess, encoders, sources, dataset, runners.
"""

from pipelines.beam_storage import connect
from schemas.storage.objects import connect_with

# In worker processes too, which import this package with whatever they are sent.
connect_with(connect)
