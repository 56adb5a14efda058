"""When a dataset is refused: the defaults of `preprocess`, and what is held against them. Light:
commands import it.

MIN_PSNR is for the pooled error of the 32 records that are decoded again. The model card of
`stabilityai/sd-vae-ft-mse` gives 24.5 +/- 3.7 dB an image on COCO at 256 pixels (23.4 +/- 3.8 for
the VAE that Stable Diffusion began with). Pooling leans to the worst images: on ImageNet
photographs a distortion of the same 24.4 +/- 3.7 dB (a shift by one pixel) pools to 20.9 dB or more
in 999 draws of 32 out of 1000. What a broken VAE gives lies lower: the image's mean colour 11 to 14
dB, half the contrast 16 to 18, red and blue exchanged 14 to 19 (16 over all).
"""

MIN_PSNR = 18.0
MAX_BAD_FRACTION = 0.01
