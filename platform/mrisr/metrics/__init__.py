"""Figures of image quality, one file each. Pure numpy, scipy and scikit-image; it may import degradation."""
