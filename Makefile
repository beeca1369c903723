# sudo make mount SRC=DIR MNT=DIR   install what is missing, and mount
# sudo make test                    install what the tests need as well, and run every check
# sudo make install                 put `passthrough` on the PATH, for good
#
# The virtual environment sits on the system's own python3 with --system-site-packages: python3-cap-ng, python3-prctl,
# python3-llfuse, python3-seccomp and python3-libnbd come from Debian, and the first from nowhere else.

PYTHON ?= /usr/bin/python3
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib/passthrough
SBINDIR ?= /sbin
COMPLETIONS = $(PREFIX)/share/bash-completion/completions/passthrough $(PREFIX)/share/zsh/site-functions/_passthrough \
	$(PREFIX)/share/fish/vendor_completions.d/passthrough.fish
VENV := $(CURDIR)/.venv
BIN := $(VENV)/bin

RUN_PACKAGES := fuse3 python3-venv python3-cap-ng python3-prctl python3-llfuse python3-seccomp python3-libnbd
TEST_PACKAGES := acl attr bash btrfs-progs busybox-static e2fsprogs fdisk fio fish gcc git libc6-dev libfuse3-dev libnbd-bin lz4 make \
	man-db mount nbdkit passwd pkg-config qemu-system-common qemu-system-x86 qemu-utils rsync sqlite3 systemd uidmap util-linux \
	xfsprogs zsh

export DEBIAN_FRONTEND := noninteractive
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

# The packages of a list that are not installed.
missing = $(shell for package in $(1); do \
	dpkg-query -W -f='$${db:Status-Status}\n' $$package 2>/dev/null | grep -qx installed || echo $$package; done)
# Install those, once the lists are there, saying so.
install_missing = @set -e; packages="$(strip $(call missing,$(1)))"; if [ -n "$$packages" ]; then \
	echo "installing: $$packages" >&2; \
	apt-get -qq update && apt-get -qq install -y --no-install-recommends $$packages >/dev/null; fi

.PHONY: help mount umount test bench bench-image bench-guest fuzz install uninstall clean
help:
	@sed -n 's/^# \(sudo make\)/\1/p' Makefile

mount: $(VENV)/run.stamp
	@[ -n "$(SRC)" ] && [ -n "$(MNT)" ] || { echo "usage: sudo make mount SRC=DIR MNT=DIR [OPTIONS='-o ...']" >&2; exit 1; }
	@$(BIN)/passthrough mount $(OPTIONS) "$(SRC)" "$(MNT)"
	@echo "mounted: $(SRC) on $(MNT)"
	@echo "unmount: sudo umount $(MNT)"

umount:
	@$(BIN)/passthrough umount "$(MNT)"

test: $(VENV)/test.stamp
	@$(BIN)/python -m pytest $(TESTS)

bench-image: $(VENV)/test.stamp
	@$(BIN)/python -m bench.image $(BENCH)

bench: $(VENV)/test.stamp
	$(call install_missing,bindfs)
	@$(BIN)/python -m bench.run $(BENCH)

bench-guest: $(VENV)/test.stamp
	@$(BIN)/python -m bench.guest $(BENCH)

fuzz: $(VENV)/test.stamp
	@$(BIN)/pip -qq install atheris
	@$(BIN)/python -m bench.fuzz_vhost $(or $(FUZZ),-max_total_time=300)

$(VENV)/run.stamp: Makefile setup.cfg setup.py
	$(call install_missing,$(RUN_PACKAGES))
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv --system-site-packages $(VENV)
	@$(BIN)/pip -qq install --no-build-isolation --no-deps --editable .
	@touch $@

$(VENV)/test.stamp: $(VENV)/run.stamp
	$(call install_missing,$(TEST_PACKAGES))
	@$(BIN)/pip -qq install --no-build-isolation --editable '.[test]'
	@touch $@

install:
	$(call install_missing,$(RUN_PACKAGES))
	@[ -x $(LIBDIR)/bin/python ] || $(PYTHON) -m venv --system-site-packages $(LIBDIR)
	@$(LIBDIR)/bin/pip -qq install --no-build-isolation --no-deps --force-reinstall .
	@install -d $(PREFIX)/bin $(PREFIX)/share/man/man1 $(PREFIX)/share/man/man3 $(PREFIX)/share/man/man7
	@ln -sf $(LIBDIR)/bin/passthrough $(PREFIX)/bin/passthrough
	@ln -sf $(LIBDIR)/bin/mount.fuse.passthrough $(SBINDIR)/mount.fuse.passthrough
	@ln -sf $(LIBDIR)/bin/passthrough-virtiofsd $(PREFIX)/bin/passthrough-virtiofsd
	@install -d $(PREFIX)/share/qemu/vhost-user
	@sed 's,/usr/local,$(PREFIX),' share/50-passthrough.json >$(PREFIX)/share/qemu/vhost-user/50-passthrough.json
	@install -m 644 man/*.1 $(PREFIX)/share/man/man1/
	@install -m 644 man/*.3 $(PREFIX)/share/man/man3/
	@install -m 644 man/*.7 $(PREFIX)/share/man/man7/
	@install -d $(PREFIX)/lib/systemd/system
	@for unit in systemd/*; do \
		sed 's,/usr/local,$(PREFIX),' $$unit >$(PREFIX)/lib/systemd/system/$$(basename $$unit); done
	@install -d $(dir $(COMPLETIONS))
	@$(LIBDIR)/bin/pip -qq install --no-build-isolation '.[completion]' \
		&& $(LIBDIR)/bin/python share/completion.py bash >$(word 1,$(COMPLETIONS)) \
		&& $(LIBDIR)/bin/python share/completion.py zsh >$(word 2,$(COMPLETIONS)) \
		&& $(LIBDIR)/bin/python share/completion.py fish >$(word 3,$(COMPLETIONS)) \
		|| echo "no completion for shells: it takes shtab, from PyPI" >&2
	@rm -rf build
	@echo "installed: $(PREFIX)/bin/passthrough, $(SBINDIR)/mount.fuse.passthrough, the man pages, units of systemd"

uninstall:
	@rm -rf $(LIBDIR) $(PREFIX)/bin/passthrough $(PREFIX)/bin/passthrough-virtiofsd $(SBINDIR)/mount.fuse.passthrough \
		$(PREFIX)/share/qemu/vhost-user/50-passthrough.json $(COMPLETIONS)
	@for unit in systemd/*; do rm -f $(PREFIX)/lib/systemd/system/$$(basename $$unit); done
	@for page in man/*.1; do rm -f $(PREFIX)/share/man/man1/$$(basename $$page); done
	@for page in man/*.3; do rm -f $(PREFIX)/share/man/man3/$$(basename $$page); done
	@for page in man/*.7; do rm -f $(PREFIX)/share/man/man7/$$(basename $$page); done

clean:
	@rm -rf $(VENV) build *.egg-info .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -type d -exec rm -rf {} +
