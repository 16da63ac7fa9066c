"""Producers: what turns lq into sr when FGR data is built.

A producer is a class registered in PRODUCERS, with typed keyword arguments and one method::

    producer(lq, scale, rng) -> (sr, record)

lq is (h, w, 3) uint8 RGB, sr (h * scale, w * scale, 3) uint8; every draw comes from the numpy generator `rng`; record
says, JSON-ready, how this sr was made. `FILES`, where a class has it, names the arguments that are files, whose
content then counts as an option of the build.
"""
