"""Whole volumes measured against their reference: baselines, tables, pictures, tasks on a cluster.

It may import inference and the rooms below it.
"""
