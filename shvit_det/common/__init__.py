"""What several folders need, once: files, errors, processors, versions. It imports no other folder."""
