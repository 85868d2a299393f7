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
# Applications go on directly; nothing stays in the kernel.
/usr/bin/meshproxy leave
