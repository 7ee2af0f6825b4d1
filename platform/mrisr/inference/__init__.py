"""Super-resolution of whole volumes and of files with a trained generator.

It may import data, cluster and the rooms below them.
"""
