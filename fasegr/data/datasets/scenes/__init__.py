"""Painted landscapes: the dataset of the quickstart, which needs no download.

`painter` paints a scene with a class for every pixel; `semantic` and `coco` write scenes to disk, when they are first
asked for, in the layouts of a folder dataset and of COCO.
"""
