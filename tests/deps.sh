#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the tests need from the distribution, only where it is missing;
# with the argument "bench", what the benchmark needs, with "vm" what the tests in
# virtual machines do.
set -euo pipefail

need=()
if [ "${1:-}" = bench ]; then
	command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || need+=(haproxy)
	command -v pip3 >/dev/null || command -v pip >/dev/null || need+=(python3-pip) # Envoy's wheel
elif [ "${1:-}" = vm ]; then
	# tests/vm makes the images itself.
	command -v qemu-system-x86_64 >/dev/null || need+=(qemu-system-x86)
	command -v debootstrap >/dev/null || [ -x /usr/sbin/debootstrap ] || need+=(debootstrap)
	command -v busybox >/dev/null || need+=(busybox-static)
	command -v modprobe >/dev/null || [ -x /usr/sbin/modprobe ] || need+=(kmod)
	command -v mkfs.ext4 >/dev/null || [ -x /usr/sbin/mkfs.ext4 ] || need+=(e2fsprogs)
	command -v xz >/dev/null || need+=(xz-utils)
	command -v zstd >/dev/null || need+=(zstd)
	test -e /usr/share/keyrings/debian-archive-keyring.gpg || need+=(debian-archive-keyring)
else
	command -v clang >/dev/null || command -v clang-14 >/dev/null || need+=(clang)
	command -v llvm-strip >/dev/null || need+=(llvm)
	test -e /usr/include/bpf/bpf_helpers.h || need+=(libbpf-dev)
	command -v gcc >/dev/null || need+=(gcc libc6-dev) # the race detector
	command -v pip3 >/dev/null || command -v pip >/dev/null || need+=(python3-pip) # Envoy's wheel
	command -v systemd-creds >/dev/null || need+=(systemd) # seals what a node keeps on disk
	command -v openssl >/dev/null || need+=(openssl) # a client of its own kind
	command -v rpm >/dev/null || need+=(rpm) # installs our package into a copy of this machine
	command -v python3 >/dev/null || need+=(python3) # glibc's resolver, as a workload uses it
	# Applications whose connections are spliced, and their benchmarks.
	compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || need+=(postgresql)
	command -v redis-server >/dev/null || need+=(redis-server redis-tools)
	command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || need+=(nginx-light)
	command -v ab >/dev/null || need+=(apache2-utils)
fi
if [ ${#need[@]} -gt 0 ]; then
	[ "$(id -u)" = 0 ] || { echo "needed: ${need[*]}; run as root or install them" >&2; exit 1; }
	# RUNLEVEL=1: nothing that is installed is to be started (invoke-rc.d(8)).
	export DEBIAN_FRONTEND=noninteractive RUNLEVEL=1
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends "${need[@]}" >/dev/null
fi
[ $# -eq 0 ] || exit 0 # Envoy and the kernels are fetched when used, into the user's cache

# The real Consul: built once, by version, into the user's cache.
cd "$(dirname "$0")/.."
go run ./tests/peers/consul/cmd/binary >/dev/null
