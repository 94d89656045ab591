"""The shared parts of the verbs that compute disparity."""
