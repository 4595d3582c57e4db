"""Denoisers: diffusers U-Nets behind one border, and an analytic one whose answers are exact."""
