"""Pipelines in plain KFP DSL: one folder each, with its compiled YAML; `stereo-pipelines list` names them."""
