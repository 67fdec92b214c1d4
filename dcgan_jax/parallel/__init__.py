"""Devices and processes: placement of arrays, and jobs of several processes."""
