"""FoundationStereo, each part of the network in a file of its own; `model` puts them together."""
