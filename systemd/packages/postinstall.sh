#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# After installation and upgrade. dpkg: configure [old version]; rpm: 1 or 2.
set -e

case "$1" in
configure | 1 | 2) ;;
*) exit 0 ;; # dpkg takes something back
esac

systemd-sysusers /usr/lib/sysusers.d/meshproxy.conf
# Paths that a container doesn't have are its own business.
systemd-tmpfiles --create /usr/lib/tmpfiles.d/meshproxy.conf || true

# By rpm's convention it is for presets to say whether a new service is enabled.
if [ "$1" = 1 ]; then
	systemctl --no-reload preset meshproxy.service || true
fi

[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
# A new version takes over from the running one; connections don't notice.
if systemctl --quiet is-active meshproxy.service; then
	systemctl reload meshproxy.service || echo "meshproxy: the version before goes on; see journalctl -u meshproxy" >&2
fi
