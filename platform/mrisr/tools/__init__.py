"""Tools beside the pipeline: the demo, pictures of degradations, the benchmark of the stream.

They may import every room but cli.
"""
