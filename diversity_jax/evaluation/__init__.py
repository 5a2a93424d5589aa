"""Judging models: benchmarks through lm-evaluation-harness, held-out text, generation and a server; heavy modules load
where used.
"""
