"""The quick start: the whole loop on a handful of photos, in minutes on a CPU."""
