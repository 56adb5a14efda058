"""Shapes and dtypes of the arrays that pass between the modules of training and sampling.

Written in jaxtyping, so that tests can check the functions that name them (tests/shapes.py says
which); where the package is used they cost nothing. A letter that stands twice in a signature is
one number.

Letters: n records or samples of a batch, h w c height, width and channels of a latent, d the axes
of any point, t the axes of any times.
"""

from jaxtyping import Array, Float32, Int32, Key

Scalar = Float32[Array, ""]
Count = Int32[Array, ""]
Times = Float32[Array, " n"]  # in [0, 1], 0 noise and 1 data
AnyTimes = Float32[Array, "*t"]
Points = Float32[Array, "n *d"]  # x_t, its ends, or a prediction
Latents = Float32[Array, "n h w c"]  # likewise, of what a network takes
Labels = Int32[Array, " n"]  # classes; the number of classes means "no label"
Numbers = Int32[Array, " n"]  # of records, epochs or samples
PerRecord = Float32[Array, " n"]  # losses, or weights of them
RandomKey = Key[Array, ""]
RandomKeys = Key[Array, " n"]
