#!/bin/sh
# image.sh NAME CONTEXT ARCHIVE: builds the image NAME from the Containerfile into an OCI archive, with what engine there is.
set -eu
name=$1 context=$2 archive=$3
rm -f "$archive"
if command -v buildah >/dev/null; then
  # COPY alone: neither a user namespace nor an overlay is needed, so this works inside a container too
  export BUILDAH_ISOLATION=chroot STORAGE_DRIVER=vfs
  buildah build --quiet --timestamp 0 -f Containerfile -t "$name" "$context" >/dev/null
  buildah push --quiet "$name" "oci-archive:$archive:docker.io/$name"
  buildah rmi "$name" >/dev/null
elif command -v podman >/dev/null; then
  podman build --quiet --timestamp 0 -f Containerfile -t "docker.io/$name" "$context" >/dev/null
  podman save --quiet --format oci-archive -o "$archive" "docker.io/$name"
elif command -v docker >/dev/null; then
  docker build --quiet -f Containerfile -t "$name" "$context" >/dev/null
  docker save -o "$archive" "$name"
else
  echo "no buildah, podman or docker: install one of them (Debian: apt-get install buildah)" >&2
  exit 1
fi
ls -l "$archive"
