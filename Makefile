# Every target works in a fresh clone: tools are built from tools/go.mod, and the one thing fetched is Go modules.
# Written for GNU make 3.81 and later.
SHELL := bash
.SUFFIXES:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Without a home, the caches of Go and of the tools live below .cache.
ifeq ($(strip $(HOME)),)
export HOME    := $(CURDIR)/.cache/home
export GOFLAGS := $(strip $(GOFLAGS) -modcacherw)
$(shell mkdir -p '$(HOME)')
endif

# The version comes in by -ldflags; asking git again fails where the clone belongs to another user.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)

TOOLS        := build/tools
PROTO_DEPS   := build/proto-deps/buf/validate/validate.proto
HELPER_IMAGE := bin/switchyard-helper-image.tar
FOLDERS      := $(wildcard agent cmd controlplane executors gitlab internal job)

TEST_FLAGS    ?= -timeout 45m
TEST_PACKAGES ?= ./...
BENCH         ?= .
BENCH_TIME    ?= 1s
FLEET_TIME    ?= 1x

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Run

.PHONY: demo
demo: build ## a small fleet on this machine: an embedded GitLab, a control plane, two agents
	go run ./internal/demo -bin bin

.PHONY: build
build: $(patsubst cmd/%/,bin/%,$(wildcard cmd/*/)) $(HELPER_IMAGE) ## the programs and the helper image, into bin/

VERSION  = $(shell git describe --tags --match 'v[0-9]*' --dirty 2>/dev/null)
REVISION = $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS  = -X github.com/switchyard-ci/switchyard/internal/buildinfo.version=$(VERSION) \
           -X github.com/switchyard-ci/switchyard/internal/buildinfo.revision=$(REVISION)

# It is sent to where jobs run.
bin/switchyard-job: LDFLAGS += -s -w

.PHONY: FORCE
bin/%: FORCE
	CGO_ENABLED=0 go build -trimpath -ldflags '$(strip $(LDFLAGS))' -o $@ ./cmd/$*

# What the docker executor's helper containers run in; made of this machine's git and its own switchyard-job. It is left
# alone if it would be the same, and left out with a line where git is no program for Linux.
$(HELPER_IMAGE): bin/switchyard-job FORCE
	@GOOS= GOARCH= go run ./internal/helperimage/build -job $< -out $@ -version '$(VERSION)'

##@ Test

.PHONY: test
test: testbed lint unit ## all that has to be green: lint, then the tests with the race detector

.PHONY: testbed
testbed: ## what tests talk to: installed on Debian as root, elsewhere named if missing
	@.ci/testbed.sh

# The race detector needs a C compiler.
.PHONY: unit
unit: testbed ## the tests alone (TEST_PACKAGES=./..., TEST_FLAGS=)
	@set -o pipefail; race=; \
	if [ "$$(go env CGO_ENABLED)" = 1 ]; then race=-race; else echo 'cgo is off or finds no C compiler: without the race detector'; fi; \
	go test -json $$race $(TEST_FLAGS) $(TEST_PACKAGES) | \
	  go run ./internal/testreport $(if $(TEST_SUMMARY),-summary '$(TEST_SUMMARY)')

.PHONY: bench
bench: ## the benchmarks of all packages, then those of a whole fleet (BENCH=., BENCH_TIME=1s, FLEET_TIME=1x)
	@packages=$$(grep -rl --include='*_test.go' '^func Benchmark' $(FOLDERS) | xargs -r -n1 dirname | sort -u | \
	  grep -v '^internal/fleettest$$' | sed 's|^|./|'); \
	if [ -n "$$packages" ]; then go test -run '^$$' -bench '$(BENCH)' -benchmem -benchtime '$(BENCH_TIME)' $$packages; fi
	go test -run '^$$' -bench '$(BENCH)' -benchtime '$(FLEET_TIME)' -timeout 60m ./internal/fleettest

##@ Lint

.PHONY: lint
lint: lint-modules lint-proto lint-generated lint-go ## all of the below

.PHONY: lint-go
lint-go: $(TOOLS)/golangci-lint ## golangci-lint with the walls, the format (gofumpt) and go vet's checks
	go vet ./...
	$(TOOLS)/golangci-lint run

.PHONY: lint-proto
lint-proto: $(TOOLS)/buf $(PROTO_DEPS) ## the contracts: style, and nothing that breaks older agents
	$(TOOLS)/buf lint
	$(TOOLS)/buf format --diff --exit-code proto
	$(TOOLS)/buf breaking proto --against proto/baseline.binpb --exclude-imports

.PHONY: lint-generated
lint-generated: $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc $(PROTO_DEPS) ## gen/ is what generate makes
	@rm -rf build/.generated
	$(TOOLS)/buf generate --output build/.generated
	@diff -r gen build/.generated/gen || { echo "gen/ is not what proto/ makes: run 'make generate' and commit gen/" >&2; exit 1; }

.PHONY: lint-modules
lint-modules: ## go.mod and go.sum are tidy
	go mod tidy -diff

##@ Write

.PHONY: fmt
fmt: $(TOOLS)/gofumpt $(TOOLS)/buf $(PROTO_DEPS) ## format Go and proto files
	$(TOOLS)/gofumpt -l -w $(FOLDERS)
	$(TOOLS)/buf format --write proto

.PHONY: generate
generate: $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc $(PROTO_DEPS) ## gen/ from proto/
	$(TOOLS)/buf generate

# Before the first release it may move with any change, later only with a release.
.PHONY: proto-baseline
proto-baseline: $(TOOLS)/buf $(PROTO_DEPS) ## take the contracts as they are for what must not break
	$(TOOLS)/buf build proto --exclude-source-info -o proto/baseline.binpb

.PHONY: clean
clean: ## remove all that is made here (but gen/)
	rm -rf bin build .cache

# The tools, each built again only when versions change.

$(TOOLS)/benchstat:          PACKAGE := golang.org/x/perf/cmd/benchstat
$(TOOLS)/buf:                PACKAGE := github.com/bufbuild/buf/cmd/buf
$(TOOLS)/gofumpt:            PACKAGE := mvdan.cc/gofumpt
$(TOOLS)/golangci-lint:      PACKAGE := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
$(TOOLS)/protoc-gen-go:      PACKAGE := google.golang.org/protobuf/cmd/protoc-gen-go
$(TOOLS)/protoc-gen-go-grpc: PACKAGE := google.golang.org/grpc/cmd/protoc-gen-go-grpc

$(TOOLS)/%: tools/go.mod tools/go.sum
	@echo 'building $* (golangci-lint and buf take minutes the first time)'
	@mkdir -p $(@D)
	@cd tools && CGO_ENABLED=0 go build -trimpath -o '$(CURDIR)/$@' $(PACKAGE)
	@touch $@

# protovalidate's schema comes out of its Go module, whose checksum stands in tools/go.sum.
$(PROTO_DEPS): tools/go.mod tools/go.sum
	@mkdir -p $(@D)
	@cd tools && go mod download github.com/bufbuild/protovalidate
	@dir=$$(cd tools && go list -m -f '{{.Dir}}' github.com/bufbuild/protovalidate) && \
	  install -m 0644 "$$dir/proto/protovalidate/buf/validate/validate.proto" $@
