"""The attention layer, its projections and cache, and the base classes of mixers."""
