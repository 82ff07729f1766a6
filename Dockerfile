# Both bases can be replaced, for example by images of a mirror:
#   BUILD_BASE    Rust 1.95, a C compiler and CA certificates
#   RUNTIME_BASE  glibc and libgcc of the same Debian release or a later one; no shell is needed
ARG BUILD_BASE=rust:1.95-bookworm
ARG RUNTIME_BASE=gcr.io/distroless/cc-debian12:nonroot

FROM ${BUILD_BASE} AS build
ARG PROFILE=release
ARG FEATURES="sql,spark"
WORKDIR /build
# Symbols are most of the file; a build of the same commit has them.
ENV CARGO_PROFILE_RELEASE_STRIP=symbols

# The dependencies alone, so that this layer, by far the longest, is built again only when they change.
# Tests and benches are not copied yet; cargo accepts that because Cargo.toml names their `path`.
COPY Cargo.toml Cargo.lock ./
COPY .cargo .cargo
RUN mkdir src \
 && touch src/lib.rs \
 && echo 'fn main() {}' > src/main.rs \
 && cargo build --locked --profile "${PROFILE}" --features "${FEATURES}" --bin fhir-sync \
 && rm -r src

# The stub is newer than the sources: without `touch` cargo would consider it up to date.
COPY . .
# The first line of the log names the commit.
ARG REVISION
RUN find src -name '*.rs' -exec touch {} + \
 && FHIR_SYNC_COMMIT="${REVISION}" cargo build --locked --profile "${PROFILE}" --features "${FEATURES}" --bin fhir-sync \
 && case "${PROFILE}" in dev) folder=debug ;; *) folder="${PROFILE}" ;; esac \
 && install -D "target/${folder}/fhir-sync" /out/fhir-sync \
 && mkdir -p /out/state /out/lake

FROM ${RUNTIME_BASE}
# Only COPY, no RUN: the base may have no shell.
# TLS trusts the system's certificates; without them every handshake fails.
COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/ca-certificates.crt
# A named volume takes owner and mode from the folder that it covers.
COPY --from=build --chown=65532:65532 /out/state /var/lib/fhir-sync
COPY --from=build --chown=65532:65532 /out/lake /srv/lake
COPY --from=build /out/fhir-sync /usr/bin/fhir-sync

USER 65532:65532
# The engine marks the container unhealthy when data are older than max_age. The first load may take
# hours: it is unhealthy until then, but failures in the start period do not count. The address is in the configuration:
# /etc/fhir-sync/fhir-sync.toml, or FHIR_SYNC_CONFIG.
HEALTHCHECK --interval=30s --timeout=5s --start-period=6h --retries=3 CMD ["fhir-sync", "healthcheck"]
ENTRYPOINT ["fhir-sync"]
CMD ["run", "--config", "/etc/fhir-sync/fhir-sync.toml"]

# Last: if a layer cache overlooks a changed argument, at worst the label names another revision of the same program.
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="fhir-sync" \
      org.opencontainers.image.description="Keeps a Delta Lake copy of a FHIR server" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
