"""Training without Ray: objectives, steps, sharding, checkpoints, precision, memory.

It imports torch, models and files alone.
"""
