#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target for FUZZTIME (go test -fuzz takes one at a time). A
# number of runs, not a duration: up to Go 1.26 the end of a duration races with
# the workers and fails the target with "context deadline exceeded"
# (go.dev/issue/75804).
set -euo pipefail
cd "$(dirname "$0")/.."
time=${FUZZTIME:-25000x}
n=0
while IFS=: read -r file _ line; do
	name=$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' <<<"$line")
	[ -n "$name" ] || continue
	go test -run '^$' -fuzz "^$name\$" -fuzztime "$time" -fuzzminimizetime 1x "./$(dirname "$file")"
	n=$((n + 1))
done < <(git grep -n '^func Fuzz' -- '*_test.go')
[ "$n" -gt 0 ] || { echo "no fuzz target found" >&2; exit 1; }
echo "$n fuzz targets ran $time each"
