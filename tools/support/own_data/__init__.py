"""A person's own data: from what is in a folder to a config that trains on it.

In the order of tools/new_config.py: reading, splitting, report and picture, recipe, writing.
"""
