"""Distributed training, tuning and serving of 3D brain-MRI super-resolution on Ray."""

__version__ = "0.1.0"
