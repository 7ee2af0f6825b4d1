"""MLflow: runs, the outbox, the model registry, provenance, and the masking of secrets.

Only this room imports MLflow. It may import models, metrics and files.
"""
