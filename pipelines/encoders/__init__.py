"""Autoencoders: found, described, loaded, and run in both directions. No Beam.

locate: a name typed after --vae to files on this machine.
fetch: the files of a VAE on the Hugging Face hub.
hub: one file of the hub, and its errors in one line.
weight_files: names of the files in diffusers' layout.
describe: what a manifest says of an autoencoder.
kl, kl_config: AutoencoderKL: the network, and its config.
tiny, tiny_config, tiny_files: AutoencoderTiny: the network, its config, its author's two files.
weights: from files into a network and back; compiled encode, where pixels become [-1, 1], and
decode.
torch_file: tensors of PyTorch's files, of which no code is run.
encode: batches of pixels to the tensors of records.
decode: the tensors of records to pixels.
flops: network operations an image.
"""
