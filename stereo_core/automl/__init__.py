"""Hyperparameter search: which values to try (study), one training process per trial (trials), the loop (search) and
its results (results)."""
