# One image for every role: `docker build --build-arg TENSORFLOW=gpu .` has TensorFlow with CUDA.
FROM python:3.11-slim-bookworm AS wheel
WORKDIR /src
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheel .

FROM python:3.11-slim-bookworm
# pip's cache would stay in the layers.
ENV PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore PYTHONUNBUFFERED=1

# Dependencies first: this layer is made again only when pyproject.toml changes. They are all
# wheels, so nothing is compiled and no build tools come along. pip stays: data sets need it.
ARG TENSORFLOW=cpu
COPY pyproject.toml /tmp/
RUN python3 -c "import tomllib; \
project = tomllib.load(open('/tmp/pyproject.toml', 'rb'))['project']; \
extras = project['optional-dependencies']; \
print(*project['dependencies'], *extras['${TENSORFLOW}'], *extras['report'], sep='\n')" > /tmp/requirements.txt \
 && pip install --requirement /tmp/requirements.txt \
 && rm /tmp/requirements.txt

COPY --from=wheel /wheel /tmp/wheel
RUN pip install --no-deps /tmp/wheel/*.whl

# Any user may write where data sets are kept: compose.yaml runs as the user who owns ./runs.
RUN useradd --uid 1000 --create-home fluffle && install --directory --mode 1777 /data
ENV FLUFFLE_DATA=/data XDG_STATE_HOME=/data/state HOME=/tmp
USER fluffle
WORKDIR /fluffle
ENTRYPOINT ["fluffle"]
CMD ["--help"]
