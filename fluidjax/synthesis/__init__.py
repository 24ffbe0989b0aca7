"""Healthy scans of any MRI contrast, made from tissue fractions on the device."""
