#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Before removal, while there still is a program to leave the mesh with. dpkg:
# remove, upgrade, …; rpm: 0 for removal, 1 for upgrade.
set -e

case "$1" in
remove | 0) ;;
*) exit 0 ;; # an upgrade stops nothing
esac

if [ -d /run/systemd/system ]; then
	systemctl --quiet disable --now meshproxy.service meshproxy-netns.socket meshproxy-netns.service || true
fi
# Applications go on directly; nothing stays in the kernel. A configuration that
# is not valid must not keep anybody from leaving.
/usr/bin/meshproxy leave || {
	defaults=$(mktemp)
	echo 'bpf: {instance: default}' >"$defaults"
	/usr/bin/meshproxy leave --config "$defaults" ||
		echo "meshproxy: what is pinned below /sys/fs/bpf/meshproxy, if that exists, was not removed" >&2
	rm -f "$defaults"
}
