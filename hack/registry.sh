#!/bin/sh
# registry.sh VELA VERSION: packages dist/xregion and writes the index of a helm-type registry beside it, in dist/registry.
set -eu
vela=$1 version=$2
export KUBECONFIG="$PWD/hack/offline.kubeconfig"
rm -rf dist/registry && mkdir -p dist/registry
(cd dist/registry && "$vela" addon package ../xregion)
# left by packaging; not part of the addon
rm -f dist/xregion/Chart.yaml
archive=xregion-$version.tgz
# an entry is the chart's own metadata and where to get it
{
  printf 'apiVersion: v1\nentries:\n  xregion:\n  - urls: [%s]\n' "$archive"
  printf '    digest: %s\n' "$(sha256sum "dist/registry/$archive" | cut -d ' ' -f 1)"
  printf '    created: "%s"\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  tar -xzOf "dist/registry/$archive" xregion/Chart.yaml | sed 's/^/    /'
  printf 'generated: "%s"\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
} > dist/registry/index.yaml
ls -l dist/registry
