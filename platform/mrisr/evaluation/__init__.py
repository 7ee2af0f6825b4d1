"""Whole volumes measured against the truth: baselines, tables, pictures, tasks on a cluster.

It may import inference and what lies below it.
"""
