"""Images to statistics of their features.

imagesets: images of a dataset, a source or a batch, by number.
measure: statistics of an image set: `flowtrain stats`.
pipeline: the Beam pipeline that measures.
sums: sums of features of one range.
rows: features kept on disk.
range_files: names of the files that a range leaves.
"""
