"""Samples of a run as a dataset, a grid or a batch.

setting: how samples are drawn, and what they are called after it.
generate: a dataset of samples, which a killed command goes on with.
sample: `flowtrain sample`.
"""
