"""Images to latents: Apache Beam pipelines, the VAE, and the reader and writer of latent
datasets.
"""

from pipelines.beam_storage import connect
from schemas.storage.objects import connect_with

# in worker processes too, which import this package with whatever they are sent
connect_with(connect)
