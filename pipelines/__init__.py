"""Images to latents: Apache Beam pipelines, the VAE, and the reader and writer of latent datasets."""
