"""`mrisr tune`: a search over keys of an experiment by Ray Tune and Optuna.

It may import training and what lies below it.
"""
