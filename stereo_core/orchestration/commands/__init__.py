"""What `stereo-pipelines` can be told, a file a subject."""
