"""FoundationStereo, one file per part of the network; `model` assembles them."""
