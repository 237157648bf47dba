"""The types Steer's nodes pass on wires."""

from comfy_api.latest import io

SteerInversion = io.Custom("STEER_INVERSION")
"""A `samplers.inversion.Inversion`: finished and immutable."""
