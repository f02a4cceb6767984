"""Collaborative-aware compression of recommendation training data, in JAX (arXiv 2407.08108)."""

__version__ = "0.1.0"
