"""A verb as a step of a pipeline: KFP's executor protocol around it."""
