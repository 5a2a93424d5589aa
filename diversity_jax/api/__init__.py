"""The Python interface: what `import diversity_jax as dj` offers, on the same functions as the commands."""
