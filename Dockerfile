# One image for every role: `docker run gristmill worker --slots 2`. It needs BuildKit (Docker 23,
# or DOCKER_BUILDKIT=1).
#
# No init is needed: the programs handle SIGTERM and SIGINT as process 1 too, and wait for each
# process that they start. Processes that a task's command leaves behind are killed, but not reaped.
# Give workers of such jobs an init (`init: true`).
# The programs write only to /var/lib/gristmill (a sink's ledger, a producer's cursors), so the rest
# may be read-only.

ARG RUST_IMAGE=rust:1.95-bookworm
ARG BASE_IMAGE=debian:bookworm-slim

# The manifests, with empty crates. The layer of the dependencies is rebuilt only if they change.
FROM ${RUST_IMAGE} AS manifests
WORKDIR /build
COPY . .
RUN find . -type f ! -name Cargo.toml ! -name Cargo.lock ! -path '*/src/bin/*.rs' ! -path '*/benches/*.rs' -delete \
    && find . -name '*.rs' -exec sh -c 'for file; do echo "fn main() { }" >"$file"; done' sh '{}' + \
    && find . -name Cargo.toml -execdir sh -c 'mkdir -p src && : >src/lib.rs' ';'

FROM ${RUST_IMAGE} AS build
WORKDIR /build
COPY --from=manifests /build .
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    cargo build --release --locked --features otlp --bin gristmill
COPY . .
# The sources are touched, because cargo compares times, and the empty crates were built after these
# files were written. Files that dependencies generated in target/ are not touched, because that
# would rebuild the dependencies.
RUN --mount=type=cache,target=/usr/local/cargo/registry,sharing=locked \
    find . -path ./target -prune -o -name '*.rs' -exec touch '{}' + \
    && cargo build --release --locked --features otlp --bin gristmill
# `worker` is `gristmill worker`, so one program is enough. The shell execs it, so signals reach it.
RUN mkdir /programs && cp target/release/gristmill /programs/ \
    && for role in producer worker sink; do \
        printf '#!/bin/sh\nexec /usr/local/bin/gristmill %s "$@"\n' "$role" >"/programs/$role" \
        && chmod 755 "/programs/$role" || exit; \
    done

FROM ${BASE_IMAGE}
ARG VERSION=dev
ARG REVISION=unknown
LABEL org.opencontainers.image.title="Gristmill" \
      org.opencontainers.image.description="Divide one big job over a fleet: every task counted exactly once, whatever dies." \
      org.opencontainers.image.licenses="MIT OR Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN groupadd --system --gid 10001 gristmill \
    && useradd --system --uid 10001 --gid 10001 --home-dir /var/lib/gristmill --shell /usr/sbin/nologin gristmill \
    && install -d -o gristmill -g gristmill -m 0750 /var/lib/gristmill
# For amqps:// with certificates of public authorities.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /programs/ /usr/local/bin/
ENV GRISTMILL_STATE=/var/lib/gristmill
WORKDIR /var/lib/gristmill
# A number, so that Kubernetes can check that it is not root.
USER 10001:10001
STOPSIGNAL SIGTERM
CMD ["gristmill", "--help"]
