"""`mrisr tune`: a search over any key of an experiment, by Ray Tune and Optuna, on a scale that no trial can move."""
