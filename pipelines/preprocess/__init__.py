"""From images to a latent dataset: `flowtrain preprocess`.

plan: checks a request and resolves it, before any work.
settings: all that decides the bytes of a dataset.
identity: whether a directory was begun with these settings, and the refusal if it was not.
index: the sorted list of images, cut into slices.
pipeline: the Beam pipeline, run in a directory that `pipelines.dataset.build` holds.
make_shard: images of one slice to one shard.
finish: statistics, rejects, card, and the manifest last.
progress: bars moved by what workers note down.
cost: what --dry-run tells.
thresholds: defaults with their evidence.
"""
