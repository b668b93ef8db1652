"""Checks of the packages: is each installed, once, in a release that works, and can it be imported?"""

import dataclasses
import platform
import re
from collections.abc import Iterator, Mapping
from importlib import metadata

from ..common.dependencies import PACKAGES, PYTHON, Package, fits, release, version_of
from .finding import Finding, Status, pip, replace
from .probe_process import Outcome

OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain')
BY_NAME = {package.name: package for package in PACKAGES}
OPTIONAL = {'mmpretrain': 'only ImageNet classification'}
NO_DISPLAY_LIBRARIES = re.compile(r'lib(GL|gthread|SM|Xext|Xrender|xcb)\b')


def installed(name: str) -> dict[str, str]:
    """Return the installed distributions of a package, with their versions."""
    names = BY_NAME[name].distributions if name in BY_NAME else (name,)
    return {each: version for each in names if (version := version_of(each)) is not None}


def check_python(_: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that this Python is one that the package is for."""
    version = platform.python_version()
    if fits(version, PYTHON):
        yield Finding(Status.OK, version)
    else:
        yield Finding(Status.FAIL, f'{version}, wanted {PYTHON}', 'python3.12 -m venv .venv')


def check_package(package: Package, outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check one package."""
    finding = _checked(package, outcomes)
    if finding.command and package.name == 'torchvision' and version_of('torch'):
        finding = dataclasses.replace(finding, command=install_torchvision())
    yield finding


def _checked(package: Package, outcomes: Mapping[str, Outcome]) -> Finding:
    outcome, found = outcomes[package.module], installed(package.name)
    if not found and outcome.missing == package.module:
        return _not_installed(package)
    described = ' and '.join(f'{name} {version}'.strip() for name, version in found.items())
    if not found:  # a source tree on the path
        described = f'{outcome.facts.get("version", "")} that was not installed by pip'.strip()
    elif list(found) == [package.name]:
        described = found[package.name]
    # releases of OneDL's forks are counted differently
    wanted = '' if any(name.startswith('onedl-') for name in found) else package.wanted
    if any(version and not fits(version, wanted) for version in found.values()):
        reason = f', and it cannot be imported: {outcome.error}' if outcome.error else ''
        text = f'{described}, wanted {wanted}{reason}'
        return Finding(Status.FAIL, text, _install_another_release(package, found))
    if outcome.error:
        text = f'{described} cannot be imported: {outcome.error}'
        return Finding(Status.FAIL, text, _repair_import(package, found, outcomes))
    if len(found) > 1:
        text = f'{described} are installed over one another'
        return Finding(Status.WARN, text, replace(tuple(found), package.tested))
    tested = package.tested.partition('==')[2]
    note = f' (tested: {tested})' if tested and not described.endswith(tested) else ''
    return Finding(Status.OK, described + note)


def check_torchvision(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that torchvision is the one that was built for this torch."""
    torch, torchvision = version_of('torch'), version_of('torchvision')
    if not torch or not torchvision:
        return  # reported by check_package
    both = f'torchvision {torchvision} beside torch {torch}'
    matches = (re.match(r'torch[ (]*==([\d.]+)', line) for line in metadata.requires('torchvision') or ())
    needs = next((match[1] for match in matches if match), '')
    (public, _, build), vision_build = torch.partition('+'), torchvision.partition('+')[2]
    if needs and release(needs) != release(public):
        yield Finding(Status.FAIL, f'{both}, but it needs torch {needs}', install_torchvision())
    elif build and vision_build and build != vision_build:
        yield Finding(Status.FAIL, f'{both}: two different builds', install_torchvision())
    elif not outcomes['torchvision'].error and not outcomes['torch'].error:
        yield Finding(Status.OK, f'{torchvision} needs torch {needs}' if needs else f'{both}: it works')


def check_families(_: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that OpenMMLab's distributions and OneDL's forks are not mixed: they overwrite the files of each other."""
    names = [name for module in OPENMMLAB for name in installed(module)]
    forks = [name for name in names if name.startswith('onedl-')]
    others = [name for name in names if name not in forks]
    if forks and others:
        onedl = (BY_NAME[name].distributions[-1] for name in OPENMMLAB)
        text = f'{", ".join(others)} beside {", ".join(forks)}'
        yield Finding(Status.WARN, text, replace(tuple(names), *onedl))
    elif names:
        yield Finding(Status.OK, "OneDL's forks" if forks else 'OpenMMLab')


def check_transformers(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Check that mmpretrain's models can be imported: a new transformers beside pycocotools prevents it."""
    error = outcomes['mmpretrain.models'].error
    if outcomes['mmpretrain'].error or outcomes['torch'].error:
        return  # reported by check_package
    transformers = version_of('transformers')
    if not error:
        yield Finding(Status.OK, f'beside transformers {transformers}' if transformers else 'no transformers')
    elif transformers:
        text = f'cannot be imported beside transformers {transformers}; detectors do not need it: {error}'
        yield Finding(Status.FAIL, text, pip('uninstall', '-y', 'transformers'))
    elif not outcomes['shvit_det'].error:
        text = f'cannot be imported; detectors do not need it: {error}'
        yield Finding(Status.FAIL, text, _install_again(installed('mmpretrain')))


def install_torchvision() -> str:
    """Return the command that installs the torchvision of the installed torch; it names its torch, so pip finds it."""
    torch = version_of('torch') or ''
    if not fits(torch, BY_NAME['torch'].wanted):
        return pip('install', BY_NAME['torch'].tested, BY_NAME['torchvision'].tested)
    public, _, build = torch.partition('+')
    index = ['--index-url', f'https://download.pytorch.org/whl/{build}'] if re.match(r'cpu|cu\d|rocm', build) else []
    return replace(('torchvision',), f'torch=={public}', 'torchvision', *index)


def _not_installed(package: Package) -> Finding:
    onedl = any(name.startswith('onedl-') for module in OPENMMLAB for name in installed(module))
    command = pip('install', package.distributions[-1] if onedl and package.name in OPENMMLAB else package.tested)
    if package.name in OPTIONAL:
        return Finding(Status.OK, f'not installed; {OPTIONAL[package.name]} needs it', command)
    return Finding(Status.FAIL, 'not installed', command)


def _repair_import(package: Package, found: Mapping[str, str], outcomes: Mapping[str, Outcome]) -> str:
    """Return the command that repairs the cause; empty where that has a line of its own."""
    outcome = outcomes[package.module]
    cause = (outcome.missing or '').partition('.')[0]
    elsewhere = cause != package.module and cause in outcomes and outcomes[cause].error
    if elsewhere or not outcome.tried:
        return ''
    if package.name == 'opencv-python' and NO_DISPLAY_LIBRARIES.search(outcome.error):
        return replace(tuple(found), 'opencv-python-headless')
    if not found:
        return pip('install', package.tested)
    if cause and cause != package.module:  # a package that it needs; pip installs that too
        return pip('install', *(f'{name}=={version}' for name, version in found.items()))
    return _install_again(found)


def _install_another_release(package: Package, found: Mapping[str, str]) -> str:
    """Return the command that replaces a release that does not work, by the same distribution if possible."""
    if package.tested.partition('==')[0] in found or len(package.distributions) == 1:
        return pip('install', package.tested)
    if package.name == 'mmcv' or len(found) > 1:  # mmcv itself would be built from source
        return replace(tuple(found), package.tested)
    return pip('install', *(f'{name}{package.wanted}' for name in found))


def _install_again(found: Mapping[str, str]) -> str:
    """Return the command that installs the same releases again, and nothing else."""
    pinned = (f'{name}=={version}' for name, version in found.items())
    return pip('install', '--force-reinstall', '--no-deps', '--no-cache-dir', *pinned)
