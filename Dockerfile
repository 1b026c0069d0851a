# Isoflop in a container, for `isoflop launch --on=gke`, `tpu_vm` and `skypilot`:
#   docker build --build-arg EXTRA=tpu --tag REGISTRY/isoflop:tpu .     (EXTRA: tpu, gpu, or none for CPUs)
# Commands run in the checkout, so that recipes are found by the paths they have in it.
FROM python:3.11-slim

ARG EXTRA=""
WORKDIR /isoflop

# What changes seldom comes first: the libraries are one layer that most builds find in the cache.
COPY pyproject.toml constraints.txt README.md LICENSE NOTICE ./
COPY research/__init__.py research/
COPY launch/__init__.py launch/
COPY configs/__init__.py configs/
RUN pip install --no-cache-dir --constraint constraints.txt --editable ".${EXTRA:+[$EXTRA]}"

COPY research research
COPY launch launch
COPY configs configs
COPY experiments experiments

# Output appears when it is written; data and compiled programs are kept where a volume is mounted.
ENV PYTHONUNBUFFERED=1 ISOFLOP_CACHE=/data/cache
CMD ["isoflop", "--help"]
