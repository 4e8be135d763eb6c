# One image for every role: `docker build --build-arg TENSORFLOW=gpu .` has TensorFlow with CUDA.
# What is in it is fixed by requirements/, version and hash. PYTHON_IMAGE takes the tag of another
# base, or an exact one, with its digest: python:3.11.14-slim-bookworm@sha256:…
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /src
COPY requirements/build.txt requirements/
RUN pip install --require-hashes --requirement requirements/build.txt
COPY . .
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheel .

FROM ${PYTHON_IMAGE}
# pip's cache would stay in the layers.
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# Dependencies first: this layer is made again only when they change. They are all wheels, so
# nothing is compiled and no build tools come along. pip stays: data sets need it.
ARG TENSORFLOW=cpu
COPY requirements/${TENSORFLOW}.txt /tmp/requirements.txt
RUN pip install --require-hashes --requirement /tmp/requirements.txt && rm /tmp/requirements.txt

COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-deps /tmp/wheel/*.whl

# Any user may write where data sets are kept: compose.yaml runs as the user who owns ./runs.
RUN useradd --uid 1000 --create-home fluffle && install --directory --mode 1777 /data
ENV FLUFFLE_DATA=/data XDG_STATE_HOME=/data/state HOME=/tmp
USER fluffle
WORKDIR /fluffle
ENTRYPOINT ["fluffle"]
CMD ["--help"]
