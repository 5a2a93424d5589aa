"""Rows in the formats of other trainers, out and in."""
