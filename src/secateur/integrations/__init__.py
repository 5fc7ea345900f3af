"""Other people's trainers and trackers: callbacks that prune in their loops, and results in their stores.

Each module imports a package that is an extra of its own, so none of them is imported here.
"""
