"""Runs a verb as a pipeline step, with KFP's executor protocol."""
