"""MLflow: runs, the outbox, the model registry, provenance, and what is masked. MLflow is imported here alone.

It may import models and files.
"""
