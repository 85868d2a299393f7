# SPDX-License-Identifier: Apache-2.0
#
# The two commands a newcomer needs are `sudo make demo` and `sudo make test`.
# Everything else is listed by `make help`.

GO       ?= go
PREFIX   ?= /usr
DESTDIR  ?=
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS  := -s -w -X github.com/meshproxy/meshproxy/nodeproxy/cli.Version=$(VERSION)
BIN      := bin/meshproxy

.PHONY: help build demo test unit race e2e fuzz lint generate check-generated bench bench-quick install uninstall clean deps

help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 20

build: ## the binary, static
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o $(BIN) .

demo: build ## two nodes on this machine, real workloads, a verdict (root); DEMOFLAGS=--keep leaves it up
	$(BIN) demo $(DEMOFLAGS)

test: deps ## everything that CI runs (root)
	tests/run.sh

deps: ## what the tests need from the distribution
	tests/deps.sh

unit: ## the tests beside the code
	$(GO) test ./...

race: ## the same under the race detector
	$(GO) test -race ./...

e2e: build ## nodes, workloads and faults on the real kernel (root)
	$(GO) test -count=1 ./tests/e2e/...

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

bench: build ## compares with the alternatives in one run (root); BENCHFLAGS=-quick
	$(GO) run ./tests/bench $(BENCHFLAGS)

install: build ## binary and example configuration below DESTDIR
	install -D -m 0755 $(BIN) $(DESTDIR)$(PREFIX)/bin/meshproxy
	install -D -m 0640 configs/minimal.yaml $(DESTDIR)/usr/share/doc/meshproxy/minimal.yaml
	install -D -m 0644 configs/full.yaml $(DESTDIR)/usr/share/doc/meshproxy/full.yaml
	test -e $(DESTDIR)/etc/meshproxy/meshproxy.yaml || install -D -m 0640 configs/minimal.yaml $(DESTDIR)/etc/meshproxy/meshproxy.yaml
	install -D -m 0644 systemd/meshproxy.service $(DESTDIR)$(PREFIX)/lib/systemd/system/meshproxy.service

uninstall: ## what install put there, configuration excepted
	rm -f $(DESTDIR)$(PREFIX)/bin/meshproxy $(DESTDIR)$(PREFIX)/lib/systemd/system/meshproxy.service
	rm -rf $(DESTDIR)/usr/share/doc/meshproxy

clean: ## build products
	rm -rf bin dist
