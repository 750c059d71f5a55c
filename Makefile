# Affleet. `make help` lists what there is.

BUF_VERSION            := v1.70.0
GOLANGCI_LINT_VERSION  := v2.15.0
PROTOC_GEN_GO_VERSION  := v1.36.12
PROTOC_GEN_GRPC_VERSION := v1.6.2

BIN     := $(CURDIR)/.bin
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -X github.com/affleet/affleet/deploy/service.Version=$(VERSION)
FUZZTIME ?= 20s
SCHEDULES ?= 3000

.DEFAULT_GOAL := help
.PHONY: help run build test e2e bench bench-redirect bench-memory bench-decisions bench-fleet bench-clicks bench-fraud mutants fuzz schedules lint fmt generate check check-generate breaking clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  %-16s %s\n", $$1, $$2 }'

run: build ## build, and start a whole fleet in one process (ARGS="--nodes 5")
	@exec $(BIN)/afflocal $(ARGS)

build: ## build all programs into .bin/
	@mkdir -p $(BIN)
	@go build -ldflags '$(LDFLAGS)' -o $(BIN)/ ./controlplane/cmd/... ./dataplane/cmd/... ./cli/cmd/... ./deploy/local/cmd/... ./deploy/sinks/cmd/...

# The race detector itself allocates, takes ten times as long, and cannot stand a store
# that is a fault: what is about these is tested again without.
test: ## run every test with the race detector
	go test -race -timeout 15m ./...
	go test -run 'Allocat|Mark|TheirMemory' ./proto/link ./dataplane/...

e2e: ## run the whole system as separate processes (part of test)
	go test -count 1 -timeout 15m ./deploy/e2e/...

bench: ## measure all figures (ARGS="--only import --rounds 1")
	go run ./deploy/bench $(ARGS)

bench-redirect: ## measure affnode beside nginx and others (part of bench; ARGS=--quick)
	go run ./deploy/bench --only redirect $(ARGS)

bench-memory: ## measure what a node takes with 1M and 10M links, in some minutes (ARGS=--quick)
	go run ./deploy/bench --only memory $(ARGS)

bench-decisions: ## measure what rules, splits and macros cost, beside nginx (ARGS=--quick)
	go run ./deploy/bench --only decisions $(ARGS)

bench-fleet: ## measure how the state reaches thousands of nodes, in about ten minutes (ARGS="--rows idle,curve")
	go run ./deploy/bench --only fleet --rounds 3 $(ARGS)

mutants: ## prove that the tests notice defects that are built in on purpose (ARGS=-list)
	go run ./deploy/mutants $(ARGS)

schedules: ## try SCHEDULES seeded schedules of nodes and of replicas (make test tries 200)
	AFF_SCHEDULES=$(SCHEDULES) go test -count=1 -timeout 60m -run UnderAnySchedule ./controlplane ./dataplane/internal/feed

bench-fraud: ## measure what the fraud detector finds, how soon, and what it costs (ARGS="--parts live")
	go run ./deploy/bench --only fraud $(ARGS)

bench-clicks: ## measure the way of a click through a node and to a consumer (part of bench)
	go run ./deploy/bench --only clicks $(ARGS)

fuzz: ## run every fuzz target for FUZZTIME
	@set -e; for pkg in $$(grep -rlE '^func Fuzz' --include '*_test.go' . | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]+' $$pkg/*_test.go | cut -c6-); do \
	    echo "$$pkg $$f"; go test $$pkg -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME); \
	  done; done

lint: $(BIN)/golangci-lint $(BIN)/buf ## check the style of Go and of the contracts
	$(BIN)/golangci-lint run ./...
	$(BIN)/buf lint

fmt: $(BIN)/golangci-lint $(BIN)/buf ## format Go and proto files
	$(BIN)/golangci-lint fmt ./...
	$(BIN)/buf format -w

generate: $(BIN)/buf $(BIN)/protoc-gen-go $(BIN)/protoc-gen-go-grpc ## generate Go from the contracts
	$(BIN)/buf generate --template proto/buf.gen.yaml

check-generate: generate ## prove that what is generated is what is committed
	@git diff --exit-code -- proto || { echo "generated code is stale: commit what 'make generate' wrote"; exit 1; }
	@test -z "$$(git ls-files --others --exclude-standard -- proto)" || { echo "generated files are not committed"; exit 1; }

# On main itself, what came before is the parent.
breaking: $(BIN)/buf ## prove that no contract was broken since main
	@base=$$(git merge-base HEAD origin/main 2>/dev/null || git merge-base HEAD main); \
	if [ "$$base" = "$$(git rev-parse HEAD)" ]; then base=$$(git rev-parse -q --verify HEAD~1 || true); fi; \
	if [ -z "$$base" ] || ! git cat-file -e "$$base:buf.yaml" 2>/dev/null; then echo "no earlier contract to compare with"; \
	else echo "$(BIN)/buf breaking --against $$base"; $(BIN)/buf breaking --against ".git#ref=$$base"; fi

check: lint check-generate breaking test ## everything that must hold before a change lands

clean: ## remove what was built
	rm -rf $(BIN)

$(BIN)/buf:
	GOBIN=$(BIN) go install github.com/bufbuild/buf/cmd/buf@$(BUF_VERSION)
$(BIN)/golangci-lint:
	GOBIN=$(BIN) go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(GOLANGCI_LINT_VERSION)
$(BIN)/protoc-gen-go:
	GOBIN=$(BIN) go install google.golang.org/protobuf/cmd/protoc-gen-go@$(PROTOC_GEN_GO_VERSION)
$(BIN)/protoc-gen-go-grpc:
	GOBIN=$(BIN) go install google.golang.org/grpc/cmd/protoc-gen-go-grpc@$(PROTOC_GEN_GRPC_VERSION)
.bin/%: $(BIN)/% ; @:

$(BIN)/etcd: go.mod
	go build -o $@ go.etcd.io/etcd/server/v3
$(BIN)/nats-server: go.mod
	go build -o $@ github.com/nats-io/nats-server/v2
