"""From volume files to batches of patches: conversion on a cluster, splits, rows, the Ray Data stream.

It may import config and what lies below it.
"""
