# `make` lists the targets.

# the one place that holds the version
VERSION := $(shell sed -n 's/^version: *//p' metadata.yaml)
IMAGE   := xregion/xregion:v$(VERSION)
TARGET  := x86_64-unknown-linux-gnu
# the lab's cache, outside the work tree
CACHE   := $(or $(XREGION_LAB_CACHE),$(if $(XDG_CACHE_HOME),$(XDG_CACHE_HOME)/xregion-lab,$(HOME)/.cache/xregion-lab))
CARGO_TARGET_DIR ?= $(CURDIR)/target

KUBEVELA  := v1.10.9
VELA      := $(CACHE)/bin/vela-$(KUBEVELA)
VELA_MOD  := tests/lab/components/kubevela
# as the lab builds it, so that Go compiles nothing twice
GO_ENV    := GOFLAGS="-buildvcs=false -mod=readonly" GOWORK=off CGO_ENABLED=0
DENY      := 0.20.2
CARGO_DENY := $(CACHE)/bin/cargo-deny-$(DENY)
# vela wants a kubeconfig it can load, even for what needs no cluster
OFFLINE   := KUBECONFIG=$(CURDIR)/hack/offline.kubeconfig

ADDON_SOURCES := metadata.yaml addon/README.md addon/template.cue addon/parameter.cue addon/NOTES.cue \
  $(wildcard addon/resources/*.cue) $(wildcard addon/views/*.cue) $(wildcard definitions/*.cue) $(wildcard definitions/include/*.cue)

.PHONY: help image addon stage faults test-faults fuzz demo demo-down test test-unit test-cue test-e2e bench bench-scale dashboard lint lab lab-up lab-down clean

# Said before minutes of building, and first whatever runs beside it (-j): while make reads this.
LABS := demo test test-e2e test-faults bench bench-scale dashboard lab-up
ifneq ($(filter $(LABS),$(MAKECMDGOALS)),)
  LACKS := $(shell hack/check.sh)
  $(if $(LACKS),$(error $(LACKS)))
endif

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: image addon ## the whole story on a lab of its own: region, join, workload (as root, about 20 minutes the first time)
	cargo run --locked -p xregion-lab --bin demo -- up

demo-down: ## delete the demo's Applications in order, then the lab
	cargo run --locked -p xregion-lab --bin demo -- down

image: dist/xregion-image.tar ## the image: xregion and vela, as dist/xregion-image.tar

addon: stage $(VELA) ## the addon: dist/xregion, packaged and indexed in dist/registry
	hack/registry.sh $(VELA) $(VERSION)

test: test-unit test-cue test-e2e ## unit tests, definitions and what fits into twenty minutes of the end-to-end tests (as root; the lab stays up)

test-unit: ## unit, property and mock-API tests
	hack/packages.sh
	cargo test --locked -p xregion
	cargo test --locked -p xregion-lab --lib --bins

test-cue: stage ## definitions and addon, evaluated by KubeVela's own code; alerts, by Prometheus' own
	hack/packages.sh promtool:prometheus
	cd tests/cue && $(GO_ENV) go test -count=1 ./...

faults: dist/faults/xregion

# the binary with kill points, for tests of death in the middle
dist/faults/xregion: Cargo.toml Cargo.lock $(shell find src -name '*.rs')
	cargo build --locked -p xregion --features faults --bin xregion
	mkdir -p $(@D) && cp $(CARGO_TARGET_DIR)/debug/xregion $@

test-faults: image addon faults ## the end-to-end tests that make test has no time for, every kill point among them (as root, about 110 minutes)
	cargo test --locked -p xregion-lab --test e2e -- --test-threads=1 --nocapture --ignored
	cargo test --locked -p xregion-lab --test down -- --ignored

test-e2e: image addon faults ## those end-to-end tests alone: through the vela CLI, on a lab (as root; it stays up)
	cargo test --locked -p xregion-lab --test e2e -- --test-threads=1

# cargo-fuzz's flags, without its need for a nightly compiler; each target runs for FUZZ_SECONDS
FUZZ_SECONDS ?= 60
FUZZ_FLAGS := -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-trace-compares \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table -Ccodegen-units=1 --cfg fuzzing

fuzz: ## random kubeconfigs and routes against the rules, a minute each
	hack/packages.sh c++:g++
	for target in kubeconfig route; do \
	  mkdir -p $(CARGO_TARGET_DIR)/corpus/$$target fuzz/seeds/$$target && \
	  RUSTFLAGS="$(FUZZ_FLAGS)" cargo run --locked --manifest-path fuzz/Cargo.toml --target-dir $(CARGO_TARGET_DIR)/fuzz --target $(TARGET) \
	    --bin $$target -- -max_total_time=$(FUZZ_SECONDS) -artifact_prefix=$(CARGO_TARGET_DIR)/ $(CARGO_TARGET_DIR)/corpus/$$target fuzz/seeds/$$target || exit 1; \
	done

# optimized: a client for debugging is slower than the ways that are measured with it
bench: image addon lab-up ## measure against the article by hand; writes target/bench/report.json (as root)
	cargo run --locked --release -p xregion-lab --bin bench -- $(PIECES)

dashboard: image addon ## docs/dashboard.svg: what the dashboard shows of the lab, by a real Prometheus (as root, about 10 minutes)
	hack/packages.sh prometheus:prometheus
	cargo run --locked -p xregion-lab --bin dashboard

bench-scale: image addon lab-up ## measure 1,000 routes and 20 regions; draws docs/scale.svg (as root, about an hour)
	cargo run --locked --release -p xregion-lab --bin bench -- scale

lint: stage $(VELA) $(CARGO_DENY) ## formatting, clippy, dependencies, definitions
	cargo fmt --all --check
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	cargo check --locked --manifest-path fuzz/Cargo.toml --no-default-features --target-dir $(CARGO_TARGET_DIR)
	$(CARGO_DENY) --locked --workspace check bans licenses sources
	$(OFFLINE) $(VELA) def vet dist/xregion/definitions/
	cd tests/cue && test -z "$$(gofmt -l . | tee -a /dev/stderr)" && $(GO_ENV) go vet ./...

lab-up: ## start the lab (as root)
	cargo run --locked -p xregion-lab --bin lab -- up

lab: ## run a command in it, such as make lab EXEC='hub -- vela cluster list'
	cargo run --quiet --locked -p xregion-lab --bin lab -- exec $(EXEC)

lab-down: ## stop the lab and remove all it made
	cargo run --locked -p xregion-lab --bin lab -- down

clean: ## remove dist and target; caches stay
	rm -rf dist target

# the CLI that joins run and that packages the addon
$(VELA): $(VELA_MOD)/go.mod $(VELA_MOD)/go.sum
	cd $(VELA_MOD) && $(GO_ENV) go build -o $@ \
	  -ldflags '-s -w -X github.com/oam-dev/kubevela/version.VelaVersion=$(KUBEVELA)' github.com/oam-dev/kubevela/references/cmd/cli
	touch $@

$(CARGO_DENY):
	cargo install --locked --root $(CACHE)/cargo-deny-$(DENY) cargo-deny@$(DENY)
	mkdir -p $(@D) && mv $(CACHE)/cargo-deny-$(DENY)/bin/cargo-deny $@ && rm -r $(CACHE)/cargo-deny-$(DENY)

# static without musl, so that FROM scratch is enough
dist/xregion-image.tar: Containerfile metadata.yaml Cargo.toml Cargo.lock $(shell find src -name '*.rs') $(VELA)
	hack/packages.sh
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --locked --release --target $(TARGET) --bin xregion
	rm -rf dist/image && mkdir -p dist/image
	ln $(VELA) dist/image/vela 2>/dev/null || cp $(VELA) dist/image/vela
	cp $(CARGO_TARGET_DIR)/$(TARGET)/release/xregion dist/image/
	hack/image.sh $(IMAGE) dist/image $@

# What several share is in definitions/include, named by a line of theirs.
INCLUDE := awk '/^\t?\/\/ include: [a-z]+$$/ {while ((getline line < ("definitions/include/" $$3 ".cue")) > 0) print line; next} {print}'

# Only what an addon consists of, in a directory called like it: KubeVela packs all it finds and matches names by prefix.
stage: $(ADDON_SOURCES)
	rm -rf dist/xregion && mkdir -p dist/xregion/resources dist/xregion/definitions dist/xregion/views
	cp metadata.yaml addon/README.md addon/template.cue addon/parameter.cue addon/NOTES.cue dist/xregion/
	cp addon/views/*.cue dist/xregion/views/
	for f in addon/resources/*.cue; do $(INCLUDE) $$f > dist/xregion/resources/$${f##*/}; done
	for f in definitions/*.cue; do $(INCLUDE) $$f | sed -e 's#xregion/xregion:v0\.0\.0#$(IMAGE)#' -e 's#version: "0\.0\.0"#version: "$(VERSION)"#' > dist/xregion/$$f; done
