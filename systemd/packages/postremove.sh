#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After removal. dpkg: remove keeps configuration and state, purge does not;
# rpm knows no purge, and keeps what was changed.
set -e

case "$1" in
purge)
	rm -rf /etc/meshproxy /var/lib/meshproxy /run/meshproxy /var/lib/private/meshproxy
	rmdir /sys/fs/bpf/meshproxy 2>/dev/null || true
	for name in meshproxy meshproxy-netns; do
		if getent passwd "$name" >/dev/null; then
			userdel "$name" 2>/dev/null || true
		fi
		if getent group "$name" >/dev/null; then
			groupdel "$name" 2>/dev/null || true
		fi
	done
	;;
remove | 0)
	rm -rf /run/meshproxy
	rmdir /sys/fs/bpf/meshproxy 2>/dev/null || true
	;;
*) exit 0 ;;
esac

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
fi
