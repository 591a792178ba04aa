# Each target does its own set-up: what is missing is installed first (Debian packages; see .ci/packages).

PREFIX  ?= /usr/local
DESTDIR ?=
CARGO   ?= cargo
TARGET  := $(or $(CARGO_TARGET_DIR),target)
MEIO    := $(TARGET)/release/meio
SOURCES := $(shell find src -name '*.rs') Cargo.toml Cargo.lock

# Choosing pids needs root; as another user, what is built is run by sudo.
ifneq ($(shell id -u),0)
SUDO   := sudo
RUNNER := CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="sudo -E"
endif

.PHONY: all demo test bench lint install survive trackers invisible moves chains worlds simulate faults rolling kernels clean setup

all: $(MEIO)

demo: $(MEIO)
	@$(SUDO) $(MEIO) demo

test: setup
	$(RUNNER) CARGO=$(CARGO) .ci/test

bench: setup
	$(RUNNER) $(CARGO) bench --locked --bench pause

# Every kernel call of a dump and of a restore is made to fail once; `make test` does a slice of it.
survive: setup
	$(RUNNER) SURVIVE=all $(CARGO) test --locked --test meio survive -- --nocapture

# Thousands of epochs a tracker, and meio killed at a thousand instants of one; `make test` does a slice of it.
trackers: setup
	$(RUNNER) TRACKERS=all $(CARGO) test --locked --bin meio tracee::track -- --nocapture --test-threads 1

# A fast stream goes through 200 dumps of the server; `make test` does a slice of it.
invisible: setup
	$(RUNNER) INVISIBLE=all $(CARGO) test --locked --test meio invisible -- --nocapture

# Moves between machines: whatever can fail does at 50 random instants each, and programs go round under load; `make test` does a slice.
moves: setup
	$(RUNNER) MOVES=50 $(CARGO) test --locked --test meio migrate:: -- --nocapture --test-threads 1

# A chain of a thousand images is restored beside the same tree from one; `make test` does a slice of it.
chains: setup
	$(RUNNER) CHAINS=all $(CARGO) test --locked --test meio chains -- --nocapture

# Two machines and the links between them, ten million times; `make test` lives through 100,000 such worlds.
worlds: setup
	$(RUNNER) WORLDS=10000000 $(CARGO) test --release --locked --bin meio migrate::simulate -- --nocapture

# A primary and its standby, a million times; `make test` lives through 2,000 such worlds.
simulate: setup
	$(RUNNER) WORLDS=1000000 $(CARGO) test --release --locked --bin meio watch::simulate -- --nocapture

# A watched redis under a client that counts, and 200 faults at random instants; `make test` lives through three.
faults: setup
	$(RUNNER) FAULTS=$(or $(FAULTS),200) $(CARGO) test --locked --test meio watch::faults -- --nocapture --test-threads 1

# Twenty switch-overs of a watched redis, to and fro, and twenty round three hosts, under clients that check all that they are told;
# `make test` does five and four.
rolling: setup
	$(RUNNER) ROUNDS=$(or $(ROUNDS),20) $(CARGO) test --locked --test meio -- --nocapture --test-threads 1 \
		watch::switch::to_and_fro_under_load watch::ring::round_and_round_under_load

# The tests under the kernels of Debian's releases, in virtual machines, and trees taken from each kernel to the others.
kernels: setup
	@.ci/setup kernels
	$(CARGO) test --locked --bin meio --no-run
	$(RUNNER) KERNELS=all $(CARGO) test --locked --test meio kernels:: -- --nocapture

lint: setup
	@if $(CARGO) fmt --version >/dev/null 2>&1 || rustup component add rustfmt >/dev/null 2>&1; then \
	    echo "$(CARGO) fmt --check"; $(CARGO) fmt --check; else echo "lint: rustfmt is not installed, skipped"; fi
	@if $(CARGO) clippy --version >/dev/null 2>&1 || rustup component add clippy >/dev/null 2>&1; then \
	    echo "$(CARGO) clippy"; $(CARGO) clippy --locked --all-targets -- -D warnings; else echo "lint: clippy is not installed, skipped"; fi

install: $(MEIO)
	install -D -m 755 $(MEIO) $(DESTDIR)$(PREFIX)/bin/meio
	install -d $(DESTDIR)$(PREFIX)/share/man/man1 $(DESTDIR)$(PREFIX)/share/man/man5
	install -m 644 man/*.1 $(DESTDIR)$(PREFIX)/share/man/man1
	install -m 644 man/*.5 $(DESTDIR)$(PREFIX)/share/man/man5
	install -D -m 644 contrib/systemd/meio-watch@.service $(DESTDIR)$(PREFIX)/lib/systemd/system/meio-watch@.service
	install -D -m 644 contrib/systemd/meio-witness.service $(DESTDIR)$(PREFIX)/lib/systemd/system/meio-witness.service
	install -D -m 644 completions/meio.bash $(DESTDIR)$(PREFIX)/share/bash-completion/completions/meio
	install -D -m 644 completions/_meio $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_meio
	install -D -m 644 completions/meio.fish $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/meio.fish

clean:
	$(CARGO) clean

setup:
	@.ci/setup

# Only when a source is newer: `sudo make install` after `make` needs no toolchain.
$(MEIO): $(SOURCES)
	@.ci/setup
	$(CARGO) build --release --locked
	@touch $@
