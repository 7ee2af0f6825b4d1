"""A run under Ray Train: driver, workers, checkpoints and what becomes of the best weights.

It may import evaluation and what lies below it.
"""
