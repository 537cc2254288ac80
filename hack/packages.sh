#!/bin/sh
# packages.sh [COMMAND:PACKAGE]...: sees to what building the image and the agent's tests need beside Rust and Go, and to what is
# asked for. The lab sees to its own.
set -eu
missing=
for pair in buildah:buildah nginx:nginx-light cc:gcc "$@"; do
  command -v "${pair%%:*}" >/dev/null || missing="$missing ${pair#*:}"
done
[ -e /usr/lib/nginx/modules/ngx_stream_module.so ] || nginx -V 2>&1 | grep -q -- '--with-stream ' || missing="$missing libnginx-mod-stream"
[ -n "$missing" ] || exit 0
if ! command -v apt-get >/dev/null; then
  echo "missing:$missing (names of Debian packages): install them with your system's package manager" >&2
  exit 1
fi
if [ "$(id -u)" != 0 ]; then
  echo "missing:$missing: run \`apt-get install$missing\` as root" >&2
  exit 1
fi
apt-get update -qq
# RUNLEVEL: a server that is installed here must not start
RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing
