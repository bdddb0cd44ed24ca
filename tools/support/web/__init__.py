"""What tools/web_demo.py is made of, in the order of an upload's way.

``server`` listens, ``page`` lays out what is seen and says what happens when, ``uploads`` lets
pictures in, ``finder`` finds, ``views`` shows what is found, ``visitors`` keeps it as long as its
page is open. ``examples`` are pictures to try.
"""
