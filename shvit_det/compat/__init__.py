"""What other libraries need from us on today's torch and Python; imports no folder.

:mod:`..on_import` says when each function acts. It does nothing where the symptom is absent.
"""
