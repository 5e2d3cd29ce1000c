GO ?= go
FUZZTIME ?= 10s
TOOLS := $(CURDIR)/.tools
CONTAINERD_VERSION := v2.3.4
RUNC_VERSION := v1.5.1
export CGO_ENABLED := 0

.PHONY: help build tools demo test integration bench lint fuzz proto clean

help: ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## /{printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## static binaries in bin/
	$(GO) build -trimpath -ldflags '-s -w' -o bin/ ./cmd/...

tools: ## containerd, ctr and runc for the demo and the tests, in .tools/bin
	@mkdir -p $(TOOLS)/bin
	@test -x $(TOOLS)/bin/ctr || GOBIN=$(TOOLS)/bin $(GO) install \
		github.com/containerd/containerd/v2/cmd/containerd@$(CONTAINERD_VERSION) \
		github.com/containerd/containerd/v2/cmd/ctr@$(CONTAINERD_VERSION) \
		github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2@$(CONTAINERD_VERSION)
	@test -x $(TOOLS)/bin/runc || CGO_ENABLED=1 GOBIN=$(TOOLS)/bin $(GO) install -tags seccomp \
		github.com/opencontainers/runc@$(RUNC_VERSION)

demo: build tools ## a counting container: checkpointed, killed, going on in a second containerd (root)
	STASIS_TOOLS=$(TOOLS)/bin $(GO) run ./integration/demo

test: ## everything that needs no root, and what root can do without containers
	$(GO) vet ./...
	$(GO) test -count=1 -shuffle=on ./...

integration: build tools ## real containers, both cgroup modes (root)
	STASIS_TOOLS=$(TOOLS)/bin STASIS_CGROUP= $(GO) test -tags integration -count=1 -timeout 40m ./integration/...
	STASIS_TOOLS=$(TOOLS)/bin STASIS_CGROUP=v2 $(GO) test -tags integration -count=1 -timeout 40m ./integration/...

bench: build tools ## our figures and goals beside runc with CRIU, where a criu is on PATH (root)
	STASIS_TOOLS=$(TOOLS)/bin $(GO) run ./integration/bench

lint: ## golangci-lint
	golangci-lint run

fuzz: ## each fuzz target for FUZZTIME
	@for p in $$($(GO) list ./...); do for f in $$($(GO) test -list '^Fuzz' $$p | grep '^Fuzz'); do \
		echo "$$p $$f"; $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) $$p || exit 1; done; done

proto: ## generate cr/blob/*.pb.go (protoc and protoc-gen-go)
	cd cr/blob && protoc --go_out=. --go_opt=paths=source_relative *.proto

clean: ## remove what make made
	rm -rf bin .tools cover.out
