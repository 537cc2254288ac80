#!/bin/sh
# check.sh: says what this machine lacks for the lab, in one sentence with the next step; nothing when it lacks nothing.
set -eu
if [ "$(uname -sm)" != "Linux x86_64" ]; then
  echo "the lab needs Linux on x86_64 and this is $(uname -sm): run it in a virtual machine of that kind"
elif [ "$(id -u)" != 0 ]; then
  echo "the lab makes network namespaces and mounts: run make as root"
elif ! command -v go >/dev/null; then
  echo "there is no go in root's PATH: install Go as README.md says, and add its directory, such as /usr/local/go/bin, to PATH"
elif ! command -v cargo >/dev/null; then
  echo "there is no cargo in root's PATH: install Rust by rustup, and add its directory, such as /root/.cargo/bin, to PATH"
fi
