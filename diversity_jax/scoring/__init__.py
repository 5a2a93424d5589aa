"""Scoring runs by a configuration: judge, forecast, checks, and baseline metrics."""
