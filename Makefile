# SPDX-License-Identifier: Apache-2.0
#
# The two commands a newcomer needs are `sudo make demo` and `sudo make test`.
# Everything else is listed by `make help`.

GO       ?= go
PREFIX   ?= /usr
DESTDIR  ?=
VMRUN    ?= .
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X github.com/meshproxy/meshproxy/nodeproxy/cli.Version=$(VERSION)
BIN      := bin/meshproxy

.PHONY: help build demo demo-consul test unit race e2e test-outage test-packages test-vm test-kernels fuzz lint generate check-generated bench bench-consul bench-quick install uninstall packages clean deps

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

build: ## the binary, static
	@mkdir -p $(dir $(BIN))
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) .

demo: build ## two nodes on this machine, real workloads, a verdict (root); DEMOFLAGS=--keep leaves it up
	$(BIN) demo $(DEMOFLAGS)

demo-consul: build ## two nodes and Envoy sidecars in a real Consul's mesh, an intention flipped, a verdict (root)
	$(GO) run ./tests/democonsul -meshproxy $(BIN) $(DEMOFLAGS)

test: deps ## everything that CI runs (root)
	tests/run.sh

deps: ## what the tests need from the distribution
	tests/deps.sh

# Those of packages and of virtual machines have targets of their own.
BESIDE = $$($(GO) list ./... | grep -v -E '/tests/(packages|vm|machines|kernels)$$')

unit: ## the tests beside the code
	$(GO) test $(BESIDE)

race: ## the same under the race detector
	GORACE=atexit_sleep_ms=0 $(GO) test -race $(BESIDE)

e2e: build ## nodes, workloads and faults on the real kernel (root)
	$(GO) test -count=1 ./tests/e2e/...

test-outage: build ## Consul is away for ten minutes, nodes restart meanwhile; CI takes a shorter time (root)
	E2E_OUTAGE=10m $(GO) test -count=1 -v -timeout 30m -run TestConsulOutage ./tests/e2e

test-packages: ## install, upgrade and remove with dpkg, rpm and make, on a copy of this machine (root)
	$(GO) test -count=1 -v -timeout 15m ./tests/packages

test-vm: ## the package on two Debian machines, under systemd, through faults, reboots and removal; VMRUN=TestMachines for those alone (root)
	tests/deps.sh vm
	$(GO) test -count=1 -v -p 1 -timeout 90m -run '$(VMRUN)' ./tests/vm ./tests/machines

test-kernels: ## nodes on Debian's kernels 5.10, 6.1, 6.12 and 7.2; KERNEL=5.10 for one (root)
	tests/deps.sh vm
	$(GO) test -count=1 -v -timeout 120m ./tests/kernels

fuzz: ## each fuzz target for a few seconds; FUZZTIME=1000000x for long
	tests/fuzz.sh

lint: ## vet, staticcheck, gofumpt, repository rules
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@out=$$($(GO) tool gofumpt -l $$(git ls-files '*.go' | grep -v _bpfe)); \
	if [ -n "$$out" ]; then echo "gofumpt: run 'go tool gofumpt -w' on:"; echo "$$out"; exit 1; fi

generate: ## compile the BPF objects (needs clang and llvm-strip)
	$(GO) generate ./bpf/...

check-generated: ## fails when committed objects differ from their sources
	tests/generated.sh

bench: build ## compares with the alternatives in one run (root); BENCHFLAGS=-quick for a try
	tests/deps.sh bench
	$(GO) run ./tests/bench $(BENCHFLAGS)

bench-consul: build ## compares with Envoy sidecars in a real Consul's mesh, and a node among 1,000 services there (root)
	tests/deps.sh bench
	$(GO) run ./tests/bench -part consul $(BENCHFLAGS)

# Where things go; the conventional places of Debian and Fedora.
PAGES = $(dir $(BIN))man
MAN   = $(DESTDIR)$(PREFIX)/share/man
SHARE = $(DESTDIR)$(PREFIX)/share
UNITS = $(DESTDIR)$(PREFIX)/lib/systemd/system
ZSH  ?= $(if $(wildcard /etc/debian_version),vendor-completions,site-functions)

install: build ## binary, units, configuration, manual pages and completions below DESTDIR
	install -D -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/bin/meshproxy
	install -d -m 0755 $(UNITS) $(SHARE)/doc/meshproxy
	install -m 0644 systemd/meshproxy.service systemd/meshproxy-netns.service systemd/meshproxy-netns.socket $(UNITS)
	install -D -m 0644 systemd/meshproxy.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/meshproxy.conf
	install -D -m 0644 systemd/meshproxy.tmpfiles $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/meshproxy.conf
	install -m 0644 configs/minimal.yaml configs/full.yaml LICENSE README.md CHANGELOG.md docs/systemd.md $(SHARE)/doc/meshproxy
	test -e $(DESTDIR)/etc/meshproxy/meshproxy.yaml || install -D -m 0640 configs/minimal.yaml $(DESTDIR)/etc/meshproxy/meshproxy.yaml
	rm -rf $(PAGES) && SOURCE_DATE_EPOCH=$(EPOCH) $(GO) run ./systemd/manpages $(VERSION) $(PAGES) && gzip -9n $(PAGES)/*/*
	install -d -m 0755 $(MAN)/man5 $(MAN)/man8
	install -m 0644 $(PAGES)/man5/* $(MAN)/man5
	install -m 0644 $(PAGES)/man8/* $(MAN)/man8
	install -d -m 0755 $(SHARE)/bash-completion/completions $(SHARE)/zsh/$(ZSH) $(SHARE)/fish/vendor_completions.d
	$(BIN) completion bash >$(SHARE)/bash-completion/completions/meshproxy
	$(BIN) completion zsh >$(SHARE)/zsh/$(ZSH)/_meshproxy
	$(BIN) completion fish >$(SHARE)/fish/vendor_completions.d/meshproxy.fish
	test -n "$(DESTDIR)" || systemd/packages/postinstall.sh configure

uninstall: ## leaves the mesh and removes what install put there, configuration and state excepted
	test -n "$(DESTDIR)" || ! test -x $(PREFIX)/bin/meshproxy || systemd/packages/preremove.sh remove
	rm -f $(DESTDIR)$(PREFIX)/bin/meshproxy $(UNITS)/meshproxy.service $(UNITS)/meshproxy-netns.service $(UNITS)/meshproxy-netns.socket
	rm -f $(DESTDIR)$(PREFIX)/lib/sysusers.d/meshproxy.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/meshproxy.conf
	rm -f $(MAN)/man5/meshproxy.yaml.5.gz $(MAN)/man8/meshproxy.8.gz $(MAN)/man8/meshproxy-*.8.gz
	rm -f $(SHARE)/bash-completion/completions/meshproxy $(SHARE)/zsh/*/_meshproxy $(SHARE)/fish/vendor_completions.d/meshproxy.fish
	rm -rf $(SHARE)/doc/meshproxy
	test -n "$(DESTDIR)" || systemd/packages/postremove.sh remove

# The packages are the same for the same sources: times are the commit's.
EPOCH    ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
ARCH     ?= $(shell $(GO) env GOARCH)
NFPM     := $(GO) run github.com/goreleaser/nfpm/v2/cmd/nfpm@v2.43.4
# Both formats sort a version with a ~ before the one without.
PACKAGED := $(shell echo '$(VERSION)' | sed -E 's/^v//; /^[0-9]+\./!s/^/0.0.0~/; s/-/./g')

# What they are made of is built apart, not over the binary that is in use.
packages: ## Debian package and RPM in dist/
	rm -rf dist && mkdir -p dist
	$(MAKE) --no-print-directory install BIN=dist/build/meshproxy DESTDIR=dist/deb ZSH=vendor-completions
	$(MAKE) --no-print-directory install BIN=dist/build/meshproxy DESTDIR=dist/rpm ZSH=site-functions
	for format in deb rpm; do \
		mv dist/$$format/etc/meshproxy dist/$$format.etc && rmdir dist/$$format/etc && \
		find dist/$$format* -exec touch -h -d @$(EPOCH) {} + && \
		TREE=dist/$$format VERSION='$(PACKAGED)' ARCH=$(ARCH) SOURCE_DATE_EPOCH=$(EPOCH) \
		$(NFPM) package --config systemd/packages/nfpm.yaml --packager $$format --target dist/ || exit 1; \
		rm -rf dist/$$format dist/$$format.etc; \
	done
	rm -rf dist/build
	cd dist && sha256sum meshproxy* | tee SHA256SUMS

clean: ## build products
	rm -rf bin dist
