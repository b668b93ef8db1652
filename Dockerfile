# The commands of shvit_det in an image, on a CPU unless the arguments say otherwise (docs/installation.md).
ARG BASE=python:3.12.12-slim-bookworm

# The kernels are compiled here, so that the image needs no compiler.
FROM python:3.12.12-slim-bookworm AS build
# Without a version: Debian's archive has the newest one alone.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY setup.py setup.cfg pyproject.toml MANIFEST.in README.md LICENSE CHANGELOG.md constraints.txt model-index.yml ./
COPY shvit_det shvit_det
COPY configs configs
COPY tools tools
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheel .

FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Images of CUDA have no Python.
# hadolint ignore=DL3008
RUN command -v python3 || { apt-get update && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*; }
RUN python3 -m venv /opt/venv && useradd --create-home --uid 10001 shvit && install --directory --owner shvit /work
ENV PATH=/opt/venv/bin:$PATH
COPY constraints.txt /opt/
COPY --from=build /wheel /opt/wheel
# OpenCV's default build needs libGL, which the base lacks; the headless build has the same Python files.
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" --constraint /opt/constraints.txt \
        "$(echo /opt/wheel/*.whl)[lite]" \
    && release=$(python -c 'from importlib.metadata import version; print(version("opencv-python"))') \
    && pip uninstall --yes opencv-python \
    && pip install --no-cache-dir --no-deps "opencv-python-headless==$release"
USER 10001
WORKDIR /work
ENTRYPOINT ["shvit-det"]
CMD ["--help"]
