"""Scoring of corpora as a configuration asks for it: judge, forecast, checks, and baseline metrics."""
