"""Devices and processes: the placement of arrays, and jobs of several processes."""
