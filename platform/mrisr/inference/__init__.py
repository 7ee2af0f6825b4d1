"""Super-resolution of whole volumes and of files with a finished generator.

It may import data, cluster and what lies below them.
"""
