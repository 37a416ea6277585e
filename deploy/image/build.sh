#!/usr/bin/env bash
# Builds the Dockerfile without a Docker engine and without an image registry: buildah, a Debian base made by mmdebstrap,
# wheels fetched beforehand. For machines that have neither; elsewhere `docker build -t awnet-server .` does it.
#
#   sudo deploy/image/build.sh FOLDER        two to ten minutes and 1.5 GB in FOLDER; base and wheels are kept
#   sudo deploy/image/try.sh FOLDER          then runs it
#
# Needs root and: apt-get install buildah mmdebstrap python3-venv
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source=$(cd "$here/../.." && pwd)
[ $# = 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }
mkdir -p "$1"
folder=$(cd "$1" && pwd)
for tool in buildah mmdebstrap; do
  command -v "$tool" > /dev/null || { echo "$tool is not installed: apt-get install $tool" >&2; exit 3; }
done
[ "$(id -u)" = 0 ] || { echo "buildah with chroot isolation needs root" >&2; exit 3; }
# No overlay mounts and no namespaces: this works inside a container or a sandbox, too.
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=chroot
# Named here, too: with --root, buildah takes no notice of the variable.
store=(--storage-driver "$STORAGE_DRIVER" --root "$folder/storage" --runroot "$folder/run")

step() { printf '== %s (%d s)\n' "$1" "$SECONDS"; }

if [ ! -f "$folder/base.tar" ]; then
  step "base: Debian 12 with python3.11"
  # The sources of this machine, so that a mirror stays a mirror.
  mmdebstrap --quiet --variant=minbase --include=python3.11,python3.11-venv,ca-certificates \
    --aptopt='APT::Install-Recommends "false"' --dpkgopt='path-exclude=/usr/share/man/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --customize-hook='ln -s /usr/bin/python3.11 "$1/usr/local/bin/python"' \
    bookworm "$folder/base.part.tar" "${APT_SOURCES:-/etc/apt/sources.list.d/debian.sources}"
  mv "$folder/base.part.tar" "$folder/base.tar"
fi
if ! buildah "${store[@]}" inspect --type image awnet-base > /dev/null 2>&1; then
  step "base image"
  printf 'FROM scratch\nADD base.tar /\n' > "$folder/Base"
  buildah "${store[@]}" bud --quiet --tag awnet-base --file "$folder/Base" --ignorefile /dev/null "$folder" > /dev/null
fi

lock=$(sha256sum "$source/requirements/server-cpu.txt" | cut -c1-16)
if [ ! -d "$folder/wheels-$lock" ]; then
  step "wheels of requirements/server-cpu.txt"
  rm -rf "$folder"/wheels-*
  [ -x "$folder/pip/bin/python" ] || python3 -m venv "$folder/pip"
  "$folder/pip/bin/python" -m pip download -qq --disable-pip-version-check --no-deps --require-hashes \
    --requirement "$source/requirements/server-cpu.txt" --dest "$folder/wheels.part"
  mv "$folder/wheels.part" "$folder/wheels-$lock"
fi

step "image"
buildah "${store[@]}" bud --quiet --tag awnet-server --build-arg BASE=localhost/awnet-base \
  --build-arg VERSION="$(sed -n 's/^__version__ = "\([^"]*\)".*/\1/p' "$source/domain/__init__.py")" \
  --build-arg REVISION="$(git -C "$source" rev-parse HEAD 2> /dev/null || echo unknown)" \
  --build-arg PIP_INDEX_URL= --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels --volume "$folder/wheels-$lock:/wheels:ro" \
  --format docker --file "$source/Dockerfile" "$source" > "$folder/image.id"
step "compressed"
buildah "${store[@]}" push --quiet awnet-server "oci-archive:$folder/awnet-server.tar" > /dev/null
printf 'compressed: %s MB\n' "$(( $(stat -c %s "$folder/awnet-server.tar") / 1000000 ))"
step "done: $(buildah "${store[@]}" images --format '{{.Name}} {{.Size}}' | tr '\n' ';')"
