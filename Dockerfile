# Understudy as a sidecar container. The home folder, with the record and the certificate authority's
# key, is a volume: give it to no other container.
FROM python:3.11-slim-bookworm AS build
# Leave it empty for a smaller image that records and compares nothing: no compiler is needed then.
ARG EXTRAS="[local]"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN if [ -n "$EXTRAS" ]; then \
      apt-get update \
   && apt-get install --no-install-recommends -y build-essential cmake \
   && rm -rf /var/lib/apt/lists/*; \
    fi
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY bin bin
COPY policies policies
COPY proxy proxy
COPY shadow shadow
COPY store store
RUN python -m venv /opt/understudy \
 && /opt/understudy/bin/pip install --no-cache-dir ".${EXTRAS}"

FROM python:3.11-slim-bookworm
# What llama.cpp's threads need.
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install --no-install-recommends -y libgomp1 \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin understudy \
 && install -d -o understudy -g understudy -m 0700 /home/understudy
COPY --from=build /opt/understudy /opt/understudy
ENV PATH=/opt/understudy/bin:$PATH UNDERSTUDY_HOME=/home/understudy PYTHONUNBUFFERED=1
USER 10001:10001
VOLUME /home/understudy
EXPOSE 4141
# Bound to all addresses it starts only with a policy that lists `clients`, or with credentials.
HEALTHCHECK --interval=10s --timeout=2s --start-period=5s --retries=3 CMD ["python", "-c", \
  "import urllib.request as r; r.urlopen('http://127.0.0.1:4141/_understudy/health', timeout=2)"]
ENTRYPOINT ["understudy"]
CMD ["serve", "--listen", "0.0.0.0:4141", "--policy", "/etc/understudy/policy.yaml"]
