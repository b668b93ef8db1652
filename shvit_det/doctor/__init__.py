"""``python -m shvit_det.doctor``: what is wrong with the stack, and the command that mends each of it.

It has to answer where nothing of the stack can be imported. So it is made of the standard library, ``shvit_det``
imports nothing for it, and everything below us is imported by another process, which may fail or crash.
"""
