"""What helps around the main way: the demo, pictures of degradations, the benchmark of the stream.

It may import every room but cli.
"""
