"""A latent dataset on disk or in a store: written, finished, read, copied.

shards: one ArrayRecord file.
shard_results: what each shard reported: counts, sums, errors.
finished: whether a dataset is whole; writes the manifest of one that is.
build: claims a directory, makes each shard once, takes up what a killed command left.
lock: one command a directory.
anywhere: a finished dataset by path or URL.
download: a remote dataset copied to a local folder.
card: the README of a dataset.
"""
