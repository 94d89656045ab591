"""FastFoundationStereo: FoundationStereo without its ViT, distilled and pruned."""
