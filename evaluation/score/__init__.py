"""Statistics to numbers.

groups: metrics beside the Fréchet distance, by name.
compare: a result from two statistics; references and finished images.
"""
