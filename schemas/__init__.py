"""What is on disk and in a configuration: records, manifests, statistics, recipes, pixels.

Nothing in here imports JAX, Beam, Grain or TensorFlow, so every stage and any other program can
read it.
"""
