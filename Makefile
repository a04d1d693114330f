# `make demo` and `make test` do everything themselves; the other targets are their parts.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test lint test-rust test-package test-wasm test-npm test-python test-demo test-browsers audit fuzz bench \
	bench-peers bench-browser bench-collector lambda test-lambda bench-lambda \
	deploy destroy outputs logs invoke update site replay local-aws clean

export PATH := $(CURDIR)/.tools/bin:$(PATH)
export PORT ?= 8787
export DATA_DIR ?= .tallymark
# Nothing here looks for AWS credentials beyond this machine.
export AWS_EC2_METADATA_DISABLED := true

# With the features of the tests, which the examples need too, so that the AWS clients are compiled once.
ALL := --workspace --all-features
PROGRAMS := cargo build $(ALL) --bins --examples

CORE := $(shell find sdk/src -name "*.rs") sdk/Cargo.toml
TRACKER := $(CORE) $(wildcard tracker-wasm/src/*.rs tracker-wasm/Cargo.toml) Cargo.toml Cargo.lock \
	$(wildcard npm/src/*.ts npm/build.mjs npm/package-lock.json npm/tsconfig.json)

help:
	@echo "make demo   a collector and a demo page (PORT=8787, DATA_DIR=.tallymark)"
	@echo "make test   lint and every test"
	@echo "make test-browsers  the tracker in Chromium, Firefox and WebKit; writes npm/BROWSERS.md"
	@echo "make lambda  the functions' packages for x86-64 and arm64; make test-lambda tests and make bench-lambda measures them"
	@echo "make deploy STAGE=dev  the whole stack on AWS; collector-lambda/deploy/README.md has the other commands"
	@echo "make local-aws  the whole stack in an emulator, with the demo page in front of it"
	@echo "make audit  licences, sources and known defects of the dependencies"
	@echo "make fuzz   the fuzz targets, FUZZ_RUNS times each (1000000)"
	@echo "make bench  the Rust client's speed; make bench-peers compares it with other clients"
	@echo "make bench-collector  the collector under load, then for ten minutes; writes collector-lambda/PERFORMANCE.md"
	@echo "make bench-browser  the tracker's size and speed, compared with other trackers"

demo:
	@.ci/tools wasm npm
	@$(MAKE) --no-print-directory npm/dist/tallymark.js
	@node npm/pack.mjs examples/static-site
	@echo "– building the collector"
	@cargo build --quiet --release --package tallymark-collector --no-default-features --features server
	@COLLECTOR=target/release/tallymark-collector node examples/static-site/demo.mjs

test: lint test-rust test-package test-wasm test-npm test-python test-demo
	@echo "everything passed"

# The tracker, for the script tag and for bundlers.
npm/dist/tallymark.js: $(TRACKER)
	@.ci/tools wasm npm
	@echo "– building the tracker"
	@cd npm && npm run --silent build

lint:
	@.ci/tools wasm npm
	.ci/import-circles
	.ci/check-links
	npm/node_modules/.bin/biome ci --error-on-warnings
	cargo fmt --all --check
	cargo clippy $(ALL) --lib --bins --examples -- -D warnings
	cargo clippy $(ALL) --all-targets -- -D warnings -A clippy::unwrap_used
	cargo clippy --package tallymark --no-default-features -- -D warnings
	for feature in client rustls bundled-roots spool gzip tower; do \
		cargo clippy --quiet --package tallymark --no-default-features --features $$feature -- -D warnings; \
	done
	cargo clippy --package tallymark-collector --no-default-features --features server -- -D warnings
	cargo clippy --package tallymark-collector --no-default-features --features lambda -- -D warnings
	cargo clippy --package tallymark --package tallymark-tracker --no-default-features --target wasm32-unknown-unknown -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(ALL) --no-deps --lib --examples

test-rust:
	@.ci/tools python
	cargo test $(ALL)
	cargo test --quiet --package tallymark --no-default-features --features client --lib # without TLS

# The crate as it would be published: all that it needs is in it, and it builds from that.
test-package:
	cargo package --quiet --package tallymark --allow-dirty

# The tracker's own tests, in a real browser. wasm-pack's warning would only be that it found no newer version of itself.
test-wasm:
	@.ci/tools wasm browser
	CHROMEDRIVER="$$(command -v $${CHROMEDRIVER:-chromedriver})" wasm-pack --log-level error test --headless --chrome --mode no-install tracker-wasm

test-npm: npm/dist/tallymark.js
	@.ci/tools npm bundlers browser
	$(PROGRAMS)
	cd npm && npm test

# The part of these tests that is about browsers, in three engines. Not part of `make test`, which has Chromium: the
# others are a lot to install.
test-browsers: npm/dist/tallymark.js
	@.ci/tools npm browser engines
	$(PROGRAMS)
	cd npm && ENGINES=chromium,firefox,webkit TABLE=BROWSERS.md node --test test/browser.test.mjs test/hostile-pages.test.mjs test/faults.test.mjs
	@cat npm/BROWSERS.md

test-python:
	@.ci/tools python
	$(PROGRAMS)
	TALLYMARK_COLLECTOR=target/debug/tallymark-collector .tools/venv/bin/python -m pytest -q -p no:cacheprovider collector-lambda/tests

# The demo, as `make demo` runs it, and the application in React, in a real browser.
test-demo: npm/dist/tallymark.js
	@.ci/tools npm react browser
	for folder in examples/static-site examples/react-app; do node npm/pack.mjs $$folder; done
	$(PROGRAMS)
	COLLECTOR=target/debug/tallymark-collector node --test examples/static-site/demo.test.mjs examples/react-app/app.test.mjs

# What may get into the dependency tree is in deny.toml. Not part of the tests: tomorrow's advisory is no defect of
# today's change, and the database of them cannot be had everywhere.
audit:
	@.ci/tools audit
	cargo deny check licenses bans sources
	@if cargo deny fetch db; then cargo deny check --disable-fetch advisories; \
		else echo "– the database of advisories cannot be had from here, so they are NOT checked"; fi

# Runs each fuzz target so often, from the corpus in the repository; what it finds on the way stays in its target folder.
# Not part of the tests, which replay that corpus. Without a sanitizer no nightly is needed, and no code of ours is unsafe.
FUZZ := collector-lambda/fuzz
FUZZ_RUNS ?= 1000000
fuzz:
	@.ci/tools fuzz
	for target in $$(cargo fuzz list --fuzz-dir $(FUZZ)); do \
		mkdir -p $(FUZZ)/target/corpus/$$target; \
		cargo fuzz run --sanitizer none --fuzz-dir $(FUZZ) $$target $(FUZZ)/target/corpus/$$target $(FUZZ)/corpus/$$target \
			-- -runs=$(FUZZ_RUNS) -max_len=1024 -print_final_stats=1; \
	done

# How fast the client is. Not part of the tests: the machine decides what comes out.
bench:
	cargo bench --package tallymark --all-features

# The same beside other clients; they are pinned and built outside of the workspace.
bench-peers:
	cargo run --release --locked --manifest-path bench/Cargo.toml --target-dir target/bench-peers

# The tracker's size and speed beside other trackers', in one Chromium.
bench-browser: npm/dist/tallymark.js
	@.ci/tools npm browser
	node bench/browser/sizes.mjs
	node bench/browser/speed.mjs

# The collector beside a bare echo, and its memory over ten minutes.
bench-collector:
	for part in "" "--soak 10"; do \
		cargo bench --package tallymark-collector --no-default-features --features server --bench load -- \
			$$part --table "$(CURDIR)/collector-lambda/PERFORMANCE.md"; \
	done

# The packages of all functions, as they are deployed. See collector-lambda/LAMBDA.md.
lambda:
	@collector-lambda/deploy/package

# The collector function's tests again, with the programs in its packages; that for arm64 in an emulator.
test-lambda: lambda
	@.ci/tools python emulator
	BOOTSTRAP=$(CURDIR)/target/lambda/x86_64/collector/bootstrap \
		cargo test --package tallymark-collector --all-features --test lambda
	BOOTSTRAP="qemu-aarch64-static -L /usr/aarch64-linux-gnu $(CURDIR)/target/lambda/arm64/collector/bootstrap" \
		cargo test --package tallymark-collector --all-features --test lambda

# What is measured is the program in the package; what measures it need not be optimised.
bench-lambda: lambda
	@.ci/tools python
	BOOTSTRAP=$(CURDIR)/target/lambda/x86_64/collector/bootstrap \
		cargo bench --profile dev --package tallymark-collector --all-features --bench lambda

# The stack on AWS. See collector-lambda/deploy/README.md.
STACK := .tools/venv/bin/python collector-lambda/deploy/stack
STAGE ?=
ARCHITECTURE ?= arm64
deploy: lambda
	@.ci/tools python
	@$(STACK) deploy --stage "$(STAGE)" --architecture "$(ARCHITECTURE)" $(PARAMETERS)

destroy:
	@.ci/tools python
	@$(STACK) destroy --stage "$(STAGE)" $(if $(DELETE_DATA),--delete-data "$(DELETE_DATA)")

outputs:
	@.ci/tools python
	@$(STACK) outputs --stage "$(STAGE)"

logs:
	@.ci/tools python
	@$(STACK) logs --stage "$(STAGE)" --function "$(FUNCTION)" $(if $(FOLLOW),--follow)

invoke:
	@.ci/tools python
	@$(STACK) invoke --stage "$(STAGE)" --function "$(FUNCTION)" --payload '$(PAYLOAD)'

update: lambda
	@.ci/tools python
	@$(STACK) update --stage "$(STAGE)" --function "$(FUNCTION)"

site:
	@.ci/tools python
	@cargo build --quiet --release --package tallymark-collector --no-default-features --features server
	@$(STACK) site --stage "$(STAGE)" $(or $(ARGS),add "$(NAME)" --origin "$(ORIGIN)")

replay:
	@.ci/tools python
	@$(STACK) replay --stage "$(STAGE)"

# The same in an emulator, with the demo page in front of it: no account, and nothing stays.
local-aws: npm/dist/tallymark.js
	@.ci/tools python
	$(PROGRAMS)
	@.tools/venv/bin/python collector-lambda/deploy/local.py

clean:
	cargo clean
	rm -rf .tools npm/node_modules npm/dist npm/build
