"""A latent dataset on disk or in a store: written, finished, read, copied.

shards: one ArrayRecord file.
shard_results: what each shard reported: counts, sums, errors.
finished: whole or not; the manifest is written.
build: claims a directory, makes each shard once, goes on after a kill.
lock: one command a directory.
anywhere: a finished dataset by path or URL.
download: a remote dataset copied to a local folder.
card: the README of a dataset.
"""
