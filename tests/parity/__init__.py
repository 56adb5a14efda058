"""Comparisons with the PyTorch originals, run live where those are installed (`pip install
flowtrain[parity]`).
"""
