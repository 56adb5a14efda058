"""Records of a dataset as batches, in an order that only the seed decides.

reader: a dataset of latents or pixels, record by record.
rows: arrays of records in memory.
cache: all records staged in memory or on a disk.
memory: how much memory there is.
order: which record comes when.
counter: random keys by (seed, epoch, record).
data: batches for one host, through Grain.
latents: posteriors drawn and normalised.
"""
