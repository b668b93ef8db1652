"""``shvit-det doctor``: what is wrong with the installation and the machine, and the command that repairs each of it.

It has to answer where no dependency can be imported. So it uses the standard library only, ``import shvit_det`` imports
nothing else, and the dependencies are imported by another process, which may fail or crash (:mod:`.probe_process`).
"""
