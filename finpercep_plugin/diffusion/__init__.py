"""Diffusion maths, pure functions: schedules, predictions, sampler steps."""
