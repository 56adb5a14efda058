"""Checkpoints to numbers: samples, their features, and distances told with their protocol.

cli: the commands; options, option_types, class_rules, sweeps: what they are asked for, typed;
evaluate: `flowtrain eval`; results: results.jsonl; protocols: how features are measured; progress:
bars.
Rooms: report, preview, draw, score, features, extractors, metrics.
"""
