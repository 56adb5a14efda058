"""From images to a latent dataset: `flowtrain preprocess`.

plan: checks a request and resolves it, before any work.
settings: all that decides the bytes of a dataset; who a directory belongs to.
index: the sorted list of images, cut into slices.
pipeline: the Beam pipeline, and what a repeated command goes on with.
make_shard: images of one slice to one shard.
finish: statistics, rejects, card, and the manifest last.
lock: one command a directory.
progress: bars moved by what workers note down.
cost: what --dry-run tells.
thresholds: defaults with their evidence.
"""
