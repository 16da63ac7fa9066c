"""Folders of results -> scores that can be cited: pairing, protocols, metrics, a journal to go on from, tables."""
