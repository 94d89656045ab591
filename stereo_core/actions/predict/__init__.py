"""What the verbs share that compute disparity."""
