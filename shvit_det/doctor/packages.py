"""Are the packages there, in releases that serve, and can they be imported?"""

import platform
import re
from collections.abc import Iterator, Mapping
from importlib import metadata

from ..common.dependencies import PACKAGES, PYTHON, Package, fits, release
from .finding import Finding, Status, pip
from .imports import Outcome

OPENMMLAB = ('mmengine', 'mmcv', 'mmdet', 'mmpretrain')
BY_MODULE = {package.module: package for package in PACKAGES}
NO_DISPLAY_LIBRARIES = re.compile(r'lib(GL|gthread|SM|Xext|Xrender|xcb)\b')


def installed(package: Package) -> dict[str, str]:
    """Return the distributions of a package that are installed, with their versions."""
    found = {}
    for distribution in package.distributions:
        try:
            found[distribution] = metadata.version(distribution) or ''
        except metadata.PackageNotFoundError:
            continue
    return found


def check_python() -> Iterator[Finding]:
    """Is it a Python that the package is for?"""
    version = platform.python_version()
    if fits(version, PYTHON):
        yield Finding('python', Status.OK, version)
    else:
        yield Finding('python', Status.FAIL, f'{version}, wanted {PYTHON}', 'python3.12 -m venv .venv')


def check_package(package: Package, outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Is it installed, once, in a release that serves, and can it be imported?"""
    outcome = outcomes[package.module]
    found = installed(package)
    described = ' and '.join(f'{name} {version}'.strip() for name, version in found.items())
    if not found and outcome.missing == package.module:
        yield _missing(package)
        return
    if not found:  # a source tree on the path
        version = outcome.facts.get('version', '')
        described = f'{version} that was not installed by pip'.strip()
    elif len(found) == 1:
        name, version = next(iter(found.items()))
        described = version if name == package.name else described
    wanted = range_of(package, found)
    if unfit := [version for version in found.values() if version and wanted and not fits(version, wanted)]:
        reason = f', and it cannot be imported: {outcome.error}' if outcome.error else ''
        yield Finding(package.name, Status.FAIL, f'{described}, wanted {wanted}{reason}', _reinstall(package, found))
    elif outcome.error:
        yield _unimportable(package, found, described, outcome, outcomes)
    elif len(found) > 1:
        command = f'{pip("uninstall", "-y", *found)} && {pip("install", package.tested)}'
        yield Finding(package.name, Status.WARN, f'{described} are installed over one another', command)
    else:
        assert not unfit
        tested = package.tested.partition('==')[2]
        beside = f' (tested: {tested})' if tested and not described.endswith(tested) else ''
        yield Finding(package.name, Status.OK, described + beside)


def range_of(package: Package, found: Mapping[str, str]) -> str:
    """Return which releases serve; of OneDL's all that are there, since they count by themselves."""
    return '' if any(name.startswith('onedl-') for name in found) else package.wanted


def check_torchvision(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Is torchvision the one that was built for this torch?"""
    name = 'torchvision for torch'
    torch, torchvision = (installed(BY_MODULE[module]).get(module, '') for module in ('torch', 'torchvision'))
    if not torch or not torchvision:
        return  # what is missing is said above
    needs = _needed_torch()
    (public, build), (_, vision_build) = (_parts(version) for version in (torch, torchvision))
    both = f'torchvision {torchvision} beside torch {torch}'
    if needs and release(needs) != release(public):
        yield Finding(name, Status.FAIL, f'{both}, but it needs torch {needs}', _torchvision_for(torch))
    elif build and vision_build and build != vision_build:
        yield Finding(name, Status.FAIL, f'{both}: two different builds', _torchvision_for(torch))
    elif outcomes['torchvision'].error or outcomes['torch'].error:
        return  # said above
    else:
        yield Finding(name, Status.OK, f'{torchvision} needs torch {needs}' if needs else f'{both}: it works')


def check_families(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Are OpenMMLab's distributions and OneDL's forks mixed? They overwrite one another's files."""
    names = [name for module in OPENMMLAB for name in installed(BY_MODULE[module])]
    forks = [name for name in names if name.startswith('onedl-')]
    originals = [name for name in names if name not in forks]
    if forks and originals:
        wanted = [BY_MODULE[module].distributions[-1] for module in OPENMMLAB]
        yield Finding(
            'OpenMMLab or OneDL',
            Status.WARN,
            f'{", ".join(originals)} beside {", ".join(forks)}',
            f'{pip("uninstall", "-y", *names)} && {pip("install", *wanted)}',
        )
    elif names:
        yield Finding('OpenMMLab or OneDL', Status.OK, "OneDL's forks" if forks else 'OpenMMLab')


def check_transformers(outcomes: Mapping[str, Outcome]) -> Iterator[Finding]:
    """Can mmpretrain's models be imported? A new transformers beside pycocotools prevents it."""
    name, outcome = 'mmpretrain.models', outcomes['mmpretrain.models']
    if outcomes['mmpretrain'].error or outcomes['torch'].error:
        return  # said above
    try:
        transformers = metadata.version('transformers')
    except metadata.PackageNotFoundError:
        transformers = None
    if not outcome.error:
        yield Finding(name, Status.OK, f'beside transformers {transformers}' if transformers else 'no transformers')
    elif transformers:
        found = f'cannot be imported beside transformers {transformers}; detectors do not need it: {outcome.error}'
        yield Finding(name, Status.FAIL, found, pip('uninstall', '-y', 'transformers'))
    elif not outcomes['shvit_det'].error:
        found = f'cannot be imported; detectors do not need it: {outcome.error}'
        yield Finding(name, Status.FAIL, found, _again(installed(BY_MODULE['mmpretrain'])))


def _missing(package: Package) -> Finding:
    """Say that it is not there; what only some need is no fault."""
    onedl = any(name.startswith('onedl-') for module in OPENMMLAB for name in installed(BY_MODULE[module]))
    to_install = package.distributions[-1] if onedl and package.name in OPENMMLAB else package.tested
    torch = installed(BY_MODULE['torch']).get('torch')
    command = _torchvision_for(torch) if package.name == 'torchvision' and torch else pip('install', to_install)
    if package.needed_for:
        return Finding(package.name, Status.OK, f'not installed; {package.needed_for} needs it', command)
    return Finding(package.name, Status.FAIL, 'not installed', command)


def _unimportable(
    package: Package, found: Mapping[str, str], described: str, outcome: Outcome, outcomes: Mapping[str, Outcome]
) -> Finding:
    """Say why it cannot be imported, and mend what is the cause."""
    text = f'{described} cannot be imported: {outcome.error}'
    cause = (outcome.missing or '').partition('.')[0]
    elsewhere = cause in BY_MODULE and cause != package.module and outcomes[cause].error  # the cause has its own line
    if elsewhere or not outcome.tried:
        return Finding(package.name, Status.FAIL, text)
    if package.module == 'cv2' and NO_DISPLAY_LIBRARIES.search(outcome.error):
        command = f'{pip("uninstall", "-y", *found)} && {pip("install", "opencv-python-headless")}'
        return Finding(package.name, Status.FAIL, text, command)
    if package.module == 'torchvision' and (torch := installed(BY_MODULE['torch']).get('torch')):
        return Finding(package.name, Status.FAIL, text, _torchvision_for(torch))
    if outcome.missing and cause != package.module:  # a package that it needs
        return Finding(package.name, Status.FAIL, text, pip('install', *_pinned(package, found)))
    return Finding(package.name, Status.FAIL, text, _again(found) if found else pip('install', package.tested))


def _reinstall(package: Package, found: Mapping[str, str]) -> str:
    """Return the command that replaces a release that does not serve, in the same distribution if it may be that."""
    if package.name == 'torchvision' and (torch := installed(BY_MODULE['torch']).get('torch')):
        return _torchvision_for(torch)
    if package.tested.startswith(tuple(f'{name}==' for name in found)) or len(package.distributions) == 1:
        return pip('install', package.tested)
    if package.name == 'mmcv' or len(found) > 1:  # mmcv itself would be built from source
        return f'{pip("uninstall", "-y", *found)} && {pip("install", package.tested)}'
    return pip('install', *(f'{name}{package.wanted}' for name in found))


def _again(found: Mapping[str, str]) -> str:
    """Return the command that writes the same releases anew, and nothing else."""
    pinned = (f'{name}=={version}' for name, version in found.items())
    return pip('install', '--force-reinstall', '--no-deps', '--no-cache-dir', *pinned)


def _pinned(package: Package, found: Mapping[str, str]) -> list[str]:
    return [f'{name}=={version}' for name, version in found.items()] or [package.tested]


def _needed_torch() -> str:
    """Return the torch that the installed torchvision names as the one it was built for; empty if it names none."""
    for requirement in metadata.requires('torchvision') or ():
        if found := re.match(r'torch\s*\(?==\s*([0-9.]+)', requirement):
            return found[1]
    return ''


def _torchvision_for(torch: str) -> str:
    """Return the command that installs the torchvision of a torch: each names its torch, so that pip finds it."""
    if not fits(torch, BY_MODULE['torch'].wanted):
        return pip('install', BY_MODULE['torch'].tested, BY_MODULE['torchvision'].tested)
    public, build = _parts(torch)
    index = ['--index-url', f'https://download.pytorch.org/whl/{build}'] if re.match(r'cpu|cu\d|rocm', build) else []
    return f'{pip("uninstall", "-y", "torchvision")} && {pip("install", f"torch=={public}", "torchvision", *index)}'


def _parts(version: str) -> tuple[str, str]:
    """Return the public part of a version and its build, such as ``cu130``."""
    public, _, build = version.partition('+')
    return public, build
