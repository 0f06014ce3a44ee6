#!/usr/bin/env bash
# Builds the CPU image and lets it answer a chat with no network, on a machine without a Docker
# engine: needs root, and from Debian buildah, podman, runc and debootstrap. The base is a Debian made
# by debootstrap instead of the public Python image. Arguments go to the build, such as
#   -v /etc/ssl/certs/ca-certificates.crt:/etc/ssl/certs/ca-certificates.crt:ro
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-$(mktemp -d)}
image=localhost/turbosparse:cpu
base=localhost/debian-python:bookworm

cat > "$work/containers.conf" <<CONF
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=4096:4096"]
[engine]
cgroup_manager = "cgroupfs"
runtime = "runc"
events_logger = "file"
CONF
cat > "$work/storage.conf" <<CONF
[storage]
driver = "overlay"
graphroot = "$work/storage"
runroot = "$work/run"
CONF
echo '{"default":[{"type":"insecureAcceptAnything"}]}' > "$work/policy.json"
export CONTAINERS_CONF=$work/containers.conf CONTAINERS_STORAGE_CONF=$work/storage.conf
policy=(--signature-policy "$work/policy.json")

if ! podman image exists "$base"; then
    [ -d "$work/root" ] || debootstrap --variant=minbase \
        --include=ca-certificates,python3,python3-venv bookworm "$work/root"
    container=$(buildah from "${policy[@]}" scratch)
    buildah add --quiet "$container" "$work/root" /
    buildah commit --quiet "${policy[@]}" "$container" "$base"
    buildah rm "$container" > /dev/null
fi

podman build --isolation chroot --network host "${policy[@]}" --pull-never --format docker \
    --build-arg BASE="$base" --target cpu --file docker/Dockerfile --tag "$image" "$@" .

name=turbosparse-try
trap 'podman rm --force $name > /dev/null' EXIT
podman run --detach --name $name --network none --read-only --tmpfs /tmp \
    --tmpfs /home/turbosparse/.cache:mode=0777 --cap-drop ALL "$image" > /dev/null
for _ in $(seq 120); do
    podman healthcheck run $name > /dev/null 2>&1 && break
    sleep 1
done
podman healthcheck run $name
podman exec $name id -u
podman exec $name turbosparse chat --quick "What is activation sparsity?" --temperature 0 --stats
podman stop --time 45 $name > /dev/null
echo "exit status $(podman inspect $name --format '{{.State.ExitCode}}')"
