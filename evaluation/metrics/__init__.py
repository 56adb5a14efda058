"""Numbers from features, by numpy and JAX alone; each module names its paper.

frechet: the Fréchet distance, FID's formula; inception_score: the Inception Score.
kernel: KID; neighbours: precision, recall, density, coverage, memorisation.
uncertainty: spread over subsets, and the limit of many samples.
features, row_blocks: feature rows read and compared in blocks.
"""

from evaluation.metrics.frechet import factor, frechet_distance, statistics_distance

__all__ = ["factor", "frechet_distance", "statistics_distance"]
