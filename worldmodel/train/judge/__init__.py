"""The judge's networks: an eye that sees what frames look like, and hands that tell which keys moved them.

Both are small and ours: trained on the real environment's frames alone, by `worldloop train judge`. Public perceptual
networks (LPIPS, Inception) are neither needed nor used, so no figure here compares with one published elsewhere.
"""
