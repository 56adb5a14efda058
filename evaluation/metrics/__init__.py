"""Numbers from features: distances, scores, and neighbours. numpy and JAX alone; each module names
its paper.
"""

from evaluation.metrics.frechet import factor, frechet_distance, statistics_distance

__all__ = ["factor", "frechet_distance", "statistics_distance"]
