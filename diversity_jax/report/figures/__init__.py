"""Functions that lay a figure out for a width in pixels and return its canvas.

Names stand beside their marks instead of in a legend, and components keep their colour from figure to figure.
"""
