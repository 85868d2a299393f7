#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# All tests, in the order in which a failure is cheapest to understand, save for
# the emulated machines and what runs beside them. Prints a summary; fails when
# any step fails or when a test was skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "the tests load BPF programs and make namespaces: run them as root" >&2; exit 1; }

log=$(mktemp -d /tmp/meshproxy-test.XXXXXX)
mkdir "$log/failed" "$log/said"
beside= # the process group of the steps in the background
finish() {
	[ -z "$beside" ] || kill -- -"$beside" 2>/dev/null || true
	rm -rf "$log"
}
trap finish EXIT

step() {
	local name=$1 begin=$SECONDS
	shift
	echo "== $name"
	if "$@" >"$log/$name" 2>&1; then
		grep -E '^ok|^ +[a-z ]+ passed +[0-9.]+ s$|fuzz targets ran|expectations hold|clang' "$log/$name" | grep -v 'no test files' || true
		echo "== $name passed in $((SECONDS - begin)) s"
	else
		awk -f tests/failures.awk "$log/$name"
		echo "== $name FAILED after $((SECONDS - begin)) s"
		touch "$log/failed/$name"
	fi
}

# begin starts a step in the background, and join waits for it and says how it
# ended. The group is one of its own, so that an interruption finds all of it.
begin() {
	set -m
	step "$@" >"$log/said/$1" 2>&1 &
	beside=$!
	set +m
	echo "== $1 goes on beside what follows"
}
join() {
	wait "$beside" || touch "$log/failed/$1"
	beside=
	cat "$log/said/$1"
}

# The longest first: none is to be left alone at the end. go test runs them in the
# order in which they are named, and each once.
packages=$(go list ./sockmap ./discovery/consul ./nodeproxy/identity/consul ./nodeproxy/l4 ./nodeproxy/tunnel \
	./... | grep -v -E '/tests/(e2e|packages|vm|machines|kernels)')
raced=$(grep -v -E '/tests/(bench|demo)' <<<"$packages")
# At full speed, too, what moves bytes: other things go wrong when the kernel's
# programs and the loops aren't slowed down. The rest would only do the same twice.
unraced=$(grep -E '/(sockmap|l4|loop|tunnel|tunnel/[a-z0-9]*|tests/(bench|demo).*)$' <<<"$packages")

step build make build
step packages make test-packages
# Under real systemd, on Debian's own kernel; logs and a summary stay in
# bin/vm-logs. Other kernels, as `make test-kernels` has them, take too long, as
# does the document on Consul word by word, the rest of `make test-vm`. The
# machines leave a third of two processors to others, but come first whenever they
# want one, for a second at a time: only what doesn't mind goes on beside them.
begin vm make test-vm VMRUN=TestMachines
step lint make lint
step generated make check-generated
step fuzz tests/fuzz.sh
# Runs nothing: the step race finds its objects in the cache.
step compiled bash -c 'go test -race -exec true "$@" | { ! grep FAIL; }' bash $raced
join vm
# -p 1 for packages that make namespaces and attach programs would double the
# time; each test has its own subtree, namespaces and pins instead.
step unit go test -count=1 -v -timeout 20m $unraced
# Each process that a test ends would wait a second for reports of races.
step race env GORACE=atexit_sleep_ms=0 go test -count=1 -race -v -timeout 40m $raced
# Those that run side by side wait nearly all of the time: for leaves to be over,
# for Consul's servers to elect another leader.
step e2e go test -count=1 -v -timeout 40m -parallel 6 ./tests/e2e/...
# The product itself under the race detector, on what exercises most of it.
step e2e-race env E2E_RACE=1 go test -count=1 -v -timeout 10m \
	-run 'TestPaths|TestContainer|TestAuthorization|TestPolicyChange|TestInboundModes|TestHotReload|TestRotation|TestHops' ./tests/e2e/...
# What the way between applications and the proxy matters to, spliced.
step e2e-hops env E2E_HOPS=auto go test -count=1 -v -timeout 10m \
	-run 'TestPaths|TestPolicyChange|TestReload|TestCloses|TestCrash$|TestSlowReader|TestPrivileges$|TestUpgrade$|TestUpgradeToAnotherLayout' ./tests/e2e/...
# What the direct way between workloads of a node matters to, by that way.
step e2e-direct env E2E_SPLICING=auto go test -count=1 -v -timeout 10m \
	-run 'TestPaths|TestRefusals|TestAuthorization|TestPolicyChange|TestChangesOfTheMesh|TestLocality|TestRestart$|TestCloses|TestCrash$|TestConnectionLimit|TestLeave$|TestRules|TestUpgradeFails' ./tests/e2e/...
step demo bin/meshproxy demo --duration 10s

if grep -shE '^\s*--- SKIP' "$log"/*; then
	echo "== tests were skipped: that counts as a failure"
	touch "$log/failed/skipped"
fi
passed=$(cat "$log"/{unit,race,e2e,packages,vm} 2>/dev/null | grep -cE '^\s*--- PASS' || true)
bad=$(cat "$log"/* 2>/dev/null | grep -cE '^\s*--- FAIL' || true)
echo "$passed passed, $bad failed"
grep -shE '^\s*--- FAIL' "$log"/* || true
if [ -n "$(ls "$log/failed")" ]; then
	echo "FAILED:" $(ls "$log/failed")
	exit 1
fi
