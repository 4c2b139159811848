"""Multi-objective alignment of language models in JAX: Meal (Meta-Aligner, arXiv 2604.24178) and its peers."""

__version__ = "0.1.0"
