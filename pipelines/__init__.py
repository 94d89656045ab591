"""Pipelines in KFP DSL: one folder each, with its compiled YAML. `stereo-pipelines list` lists them."""
