#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All tests, in the order in which a failure is cheapest to understand. Prints
# a summary; fails when any step fails or when a test was skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "the tests load BPF programs and make namespaces: run them as root" >&2; exit 1; }

log=$(mktemp -d /tmp/meshproxy-test.XXXXXX)
trap 'rm -rf "$log"' EXIT
failed=()

step() {
	local name=$1 begin=$SECONDS
	shift
	echo "== $name"
	if "$@" >"$log/$name" 2>&1; then
		grep -E '^ok|^ +[a-z ]+ passed +[0-9.]+ s$|fuzz targets ran|expectations hold|clang' "$log/$name" | grep -v 'no test files' || true
		echo "== $name passed in $((SECONDS - begin)) s"
	else
		cat "$log/$name"
		echo "== $name FAILED after $((SECONDS - begin)) s"
		failed+=("$name")
	fi
}

packages=$(go list ./... | grep -v -E '/tests/(e2e|packages|vm|machines|kernels)')

step build make build
step lint make lint
step generated make check-generated
# -p 1 for packages that make namespaces and attach programs would double the
# time; each test has its own subtree, namespaces and pins instead.
step unit go test -count=1 -v -timeout 20m $packages
step race go test -count=1 -race -timeout 20m $(go list ./... | grep -v -E '/tests/(e2e|bench|demo|packages|vm|machines|kernels)')
step e2e go test -count=1 -v -timeout 20m ./tests/e2e/...
# The product itself under the race detector, on what exercises most of it.
step e2e-race env E2E_RACE=1 go test -count=1 -v -timeout 10m \
	-run 'TestPaths|TestContainer|TestAuthorization|TestPolicyChange|TestInboundModes|TestHotReload|TestRotation|TestHops' ./tests/e2e/...
# What the way between applications and the proxy matters to, spliced.
step e2e-hops env E2E_HOPS=auto go test -count=1 -v -timeout 10m \
	-run 'TestPaths|TestPolicyChange|TestReload|TestCloses|TestCrash$|TestSlowReader|TestPrivileges$|TestUpgrade$|TestUpgradeToAnotherLayout' ./tests/e2e/...
step packages make test-packages
# Under real systemd, on Debian's own kernel; logs and a summary stay in
# bin/vm-logs. Other kernels, as `make test-kernels` has them, take too long, as
# does the document on Consul word by word, the rest of `make test-vm`.
step vm make test-vm VMRUN=TestMachines
step fuzz tests/fuzz.sh
step demo bin/meshproxy demo --duration 10s

if grep -hE '^\s*--- SKIP' "$log"/*; then
	echo "== tests were skipped: that counts as a failure"
	failed+=(skipped)
fi
passed=$(cat "$log"/{unit,e2e,packages,vm} 2>/dev/null | grep -cE '^\s*--- PASS' || true)
bad=$(cat "$log"/* 2>/dev/null | grep -cE '^\s*--- FAIL' || true)
echo "$passed passed, $bad failed"
if [ ${#failed[@]} -gt 0 ]; then
	echo "FAILED: ${failed[*]}"
	exit 1
fi
