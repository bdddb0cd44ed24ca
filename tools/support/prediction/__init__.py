"""What tools/image_demo.py is made of, in the order of an image's way.

``inputs`` reads, ``model`` (for large images through ``tiles``) predicts, ``findings`` says what is
kept of a prediction, ``results`` writes it.
"""
