"""What other libraries need from us on today's torch and Python, one small module for each symptom; imports no folder.

:mod:`..on_import` says when each of them acts. Every function may be called twice, and does nothing where the symptom
is absent.
"""
