"""The commands of `stereo-pipelines`, one file per topic."""
