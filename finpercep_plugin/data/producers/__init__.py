"""Producers: what turns lq into sr when FGR data is built, one a file; `base.py` says what each takes and gives."""
