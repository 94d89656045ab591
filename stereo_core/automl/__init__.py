"""The search for hyperparameters: what to try (study), a training in a process of its own (trials), both together
(search), and what it found (results)."""
