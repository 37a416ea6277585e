#!/usr/bin/env bash
# Runs the image that build.sh made, twice, and uploads an example image to it each time:
#   1. `buildah run`, as user 10001, with its own health check;
#   2. in a mount namespace whose root is read-only but for a tmpfs on /tmp, without any capability.
# It prints what held and ends with a failing status at the first thing that does not. It proves that the image starts,
# serves and stops so; it proves nothing about a container engine's own namespaces, seccomp profile or networks.
#
#   sudo deploy/image/try.sh FOLDER          the folder that build.sh was given
set -euo pipefail
source=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
[ $# = 1 ] || { sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"; exit 2; }
folder=$(cd "$1" && pwd)
export STORAGE_DRIVER=${STORAGE_DRIVER:-vfs} BUILDAH_ISOLATION=chroot
# Named here, too: with --root, buildah takes no notice of the variable.
store=(--storage-driver "$STORAGE_DRIVER" --root "$folder/storage" --runroot "$folder/run")
container=$(buildah "${store[@]}" from --pull-never awnet-server)
pid=""
finish() {
  if [ -n "$pid" ]; then kill "$pid" 2> /dev/null || true; fi
  buildah "${store[@]}" rm "$container" > /dev/null
}
trap finish EXIT
fail() { echo "FAILED: $1" >&2; if [ -f "$folder/server.log" ]; then tail -20 "$folder/server.log" >&2; fi; exit 1; }
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
url=http://127.0.0.1:$port
# The network is this machine's own here, so the server has to stay on its loopback.
own=(AWNET_HOST=127.0.0.1 AWNET_PORT="$port" AWNET_ADMIN_PORT=none AWNET_DRAIN_SECONDS=0)

server_pid() { ss -Hltnp "sport = :$port" | sed -n 's/.*pid=\([0-9]*\).*/\1/p' | head -1; }

upload() { # $1: what is tried
  for _ in $(seq 300); do
    if curl -sf -o /dev/null "$url/v2/health/ready"; then break; fi
    kill -0 "$pid" 2> /dev/null || fail "$1: the server ended"
    sleep 0.1
  done
  answer=$(curl -sf -F "image=@$source/examples/cat.png" "$url/predict") || fail "$1: no answer"
  python3 - "$answer" << 'PYTHON' || fail "$1: a wrong answer: $answer"
import json, sys
result = json.loads(sys.argv[1])["results"][0]
print(f"   upload answered: {result['predictions'][0]['label']}, {result['adversarial']['verdict']}")
sys.exit(result["predictions"][0]["label"] != "cat" or result["adversarial"]["verdict"] != "clean")
PYTHON
  served=$(server_pid)
  uid=$(awk '/^Uid:/ {print $2}' "/proc/$served/status")
  [ "$uid" = 10001 ] || fail "$1: runs as user $uid"
  echo "   runs as user $uid, $(awk '/^VmRSS:/ {printf "%d MB", $2 / 1024}' "/proc/$served/status"), capabilities" \
    "$(awk '/^CapEff:/ {print $2}' "/proc/$served/status")"
}

stop() { # $1: what is tried
  kill -TERM "$(server_pid)"
  for _ in $(seq 100); do
    if ! kill -0 "$pid" 2> /dev/null; then break; fi
    sleep 0.1
  done
  if wait "$pid"; then echo "   SIGTERM: exit status 0"; else fail "$1: SIGTERM ended it with status $?"; fi
  pid=""
}

buildah "${store[@]}" inspect --type image \
  --format 'user {{.Docker.Config.User}}, entry point {{.Docker.Config.Entrypoint}}, stop signal {{.Docker.Config.StopSignal}}' \
  awnet-server
echo

echo "== buildah run"
buildah "${store[@]}" run --user 10001 "$container" -- env "${own[@]}" python -m server > "$folder/server.log" 2>&1 &
pid=$!
upload "buildah run"
# The health check as it stands in the image, through the same door.
python3 - "$folder" "$container" "$port" << 'PYTHON' || fail "the health check"
import json, os, subprocess, sys
folder, container, port = sys.argv[1:]
driver = os.environ["STORAGE_DRIVER"]
store = ["buildah", "--storage-driver", driver, "--root", f"{folder}/storage", "--runroot", f"{folder}/run"]
document = json.loads(subprocess.check_output([*store, "inspect", "--type", "image", "awnet-server"]))
kind, *check = document["Docker"]["config"]["Healthcheck"]["Test"]
assert kind == "CMD", kind
for given, expected in ((port, 0), ("1", 1)):
    run = [*store, "run", "--user", "10001", container, "--", "env", f"AWNET_PORT={given}", *check]
    status = subprocess.run(run, stderr=subprocess.DEVNULL).returncode
    assert status == expected, (given, status)
print("   health check: 0 while it serves, 1 where nothing listens")
PYTHON
stop "buildah run"

echo "== read-only root"
root=$(buildah "${store[@]}" mount "$container")
# An empty bounding set and no new privileges are what compose.yaml asks for.
unshare --mount --propagation private -- bash -euc '
  root=$1; shift
  mount --bind "$root" "$root"
  mount -o remount,bind,ro "$root"
  mount -t tmpfs -o size=64m,mode=1777 tmpfs "$root/tmp"
  mount -t proc proc "$root/proc"
  if touch "$root/app/written" 2> /dev/null; then echo "the root can be written" >&2; exit 9; fi
  exec chroot "$root" /usr/bin/setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs \
    --bounding-set=-all --inh-caps=-all /usr/bin/env -i HOME=/tmp PATH=/opt/awnet/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 \
    AWNET_REPOSITORY=/app/model_repository "$@" /bin/sh -c "cd /app && exec python -m server"
' bash "$root" "${own[@]}" > "$folder/server.log" 2>&1 &
pid=$!
upload "read-only root"
stop "read-only root"
echo "== done"
