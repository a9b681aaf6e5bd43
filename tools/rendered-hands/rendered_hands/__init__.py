"""A small renderer of hands with a known number of fingers; needs the package anny."""

from rendered_hands.scene import as_grey, draw_hand, render_hands

__all__ = ["as_grey", "draw_hand", "render_hands"]
