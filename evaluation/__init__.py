"""Checkpoints to numbers: generate, decode, features, statistics, report."""
