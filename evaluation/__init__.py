"""Checkpoints to numbers: generate samples, decode them, measure features, and tell the result with
its protocol.
"""
