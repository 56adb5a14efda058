"""Checkpoints to numbers: samples, their features, and distances told with their protocol.

cli: the commands; options: what a command is asked for, typed; option_types: lists on the command
line; class_rules: the class of each sample; sweeps: every combination of values; evaluate:
`flowtrain eval`; results: results.jsonl; protocols: how features are measured; progress: bars.
Rooms (packages in this one): report, preview, draw, score, features, extractors, metrics.
"""
