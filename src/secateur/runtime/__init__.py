"""Running a packed network with numpy alone, and numba, scipy or zstandard where they are there.

``secateur.write_folder`` copies these files beside a network, under another name: they import each other
by relative paths, and nothing else of secateur.
"""
