# Everything here works in a fresh clone: tools are built from tools/go.mod, no network but the Go module proxy's.
SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.SUFFIXES:
.DEFAULT_GOAL := help

# Without a home the caches of Go, golangci-lint and buf live below .cache.
ifeq ($(strip $(HOME)),)
export HOME    := $(CURDIR)/.cache/home
export GOFLAGS := $(strip $(GOFLAGS) -modcacherw)
$(shell mkdir -p '$(HOME)')
endif

TOOLS     := build/tools
PROTOS     = $(shell find proto -name '*.proto' 2>/dev/null)
PROTO_DEPS := build/proto-deps/buf/validate/validate.proto

##@ Help

.PHONY: help
help: ## list the targets
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

##@ Code

.PHONY: generate
generate: $(TOOLS)/buf $(TOOLS)/protoc-gen-go $(TOOLS)/protoc-gen-go-grpc $(PROTO_DEPS) ## make gen/ from proto/
	$(TOOLS)/buf generate

# The tools. Each is built again only when the versions change.

$(TOOLS)/buf:                TOOL := github.com/bufbuild/buf/cmd/buf
$(TOOLS)/protoc-gen-go:      TOOL := google.golang.org/protobuf/cmd/protoc-gen-go
$(TOOLS)/protoc-gen-go-grpc: TOOL := google.golang.org/grpc/cmd/protoc-gen-go-grpc
$(TOOLS)/gofumpt:            TOOL := mvdan.cc/gofumpt
$(TOOLS)/golangci-lint:      TOOL := github.com/golangci/golangci-lint/v2/cmd/golangci-lint
$(TOOLS)/benchstat:          TOOL := golang.org/x/perf/cmd/benchstat

$(TOOLS)/%: tools/go.mod tools/go.sum
	@mkdir -p $(@D)
	@echo "building $* $(if $(filter golangci-lint,$*),(some minutes the first time))" >&2
	@cd tools && go build -trimpath -buildvcs=false -o '$(CURDIR)/$@' $(TOOL)
	@touch $@

# protovalidate's schema comes out of its Go module, whose checksum stands in tools/go.sum.
$(PROTO_DEPS): tools/go.mod tools/go.sum
	@mkdir -p $(@D)
	@cd tools && go mod download github.com/bufbuild/protovalidate
	@dir=$$(cd tools && go list -m -f '{{.Dir}}' github.com/bufbuild/protovalidate) && \
	  install -m 0644 "$$dir/proto/protovalidate/buf/validate/validate.proto" $@
