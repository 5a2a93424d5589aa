"""Figures: each function draws one for a width in pixels and returns its canvas.

Curves and dots are labelled directly where there is room, and a component has the same colour in all figures.
"""
