"""How Sphinx makes a site of README.md, the pages in this folder and the docstrings: make docs"""

import importlib

from sphinx.application import Sphinx

project = 'shvit_det'
version = release = importlib.import_module('shvit_det').__version__

# The sources start at the repository's root, so that the links are those that work in a checkout.
root_doc = 'README'
include_patterns = ['README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'docs/**.md']
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon']
html_theme = 'furo'
html_title = f'{project} {version}'
html_copy_source = False
html_show_copyright = False

nitpicky = True
# Modules have no entries of their own in the reference, and Python's manual is not read.
nitpick_ignore_regex = [('py:mod', '.*'), ('py:class', 'pathlib.Path')]
myst_heading_anchors = 4
autodoc_member_order = 'bysource'
autodoc_typehints = 'none'  # signatures and texts say it; mmengine's base classes have types of their own
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [('Shapes', 'Shapes')]

# README.md is also read on its own, where a toctree would show as text, so it is added here.
CONTENTS = """
```{toctree}
:hidden:
:caption: Use

docs/installation
docs/configs
docs/training
docs/own_data
docs/checking_data
docs/imagenet
docs/checkpoints
docs/prediction
docs/deployment
docs/gpu
docs/exporting
docs/phone
docs/timing
docs/benchmarks
docs/reliability
docs/troubleshooting
docs/migrating
docs/api
CHANGELOG
```

```{toctree}
:hidden:
:caption: Develop
:glob:

CONTRIBUTING
docs/dev/map
docs/dev/*
docs/dev/results/*
```
"""


def add_contents(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the table of contents to the first page."""
    if docname == root_doc:
        source[0] += CONTENTS


def setup(app: Sphinx) -> None:
    app.connect('source-read', add_contents)
