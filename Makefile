# sudo make mount SRC=DIR MNT=DIR   install what is missing, and mount
# sudo make umount MNT=DIR          undo that
# sudo make test                    install what the tests need as well, and run every check
# sudo make install                 put `passthrough` on the PATH, for good; with COMPILED=1 faster, and for this Python alone
# sudo make uninstall               take that away again
# sudo make compiled                compile in this tree what each request goes through, until `make clean`
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
TEST_PACKAGES := acl attr bash btrfs-progs busybox-static e2fsprogs fdisk fio fish gcc git libc6-dev libfuse-dev libfuse3-dev libnbd-bin lz4 make \
	man-db mount nbdkit passwd pkg-config python3-dev qemu-system-common qemu-system-x86 qemu-utils rsync sqlite3 systemd \
	uidmap util-linux xfsprogs zsh

# What PASSTHROUGH_COMPILED=1 (setup.py) takes besides: mypyc, which mypy brings, and its compiler.
COMPILE_PACKAGES := gcc libc6-dev python3-dev
MYPY := $(shell sed -n 's/^ *mypy == /mypy==/p' setup.cfg)

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

.PHONY: help mount umount test test-peer compiled bench bench-image bench-guest fuzz install uninstall clean
help:
	@sed -n 's/^# \(sudo make\)/\1/p' Makefile

mount: $(VENV)/run.stamp
	@[ -n "$(SRC)" ] && [ -n "$(MNT)" ] || { echo "usage: sudo make mount SRC=DIR MNT=DIR [OPTIONS='-o ...']" >&2; exit 1; }
	@$(BIN)/passthrough mount $(OPTIONS) "$(SRC)" "$(MNT)"
	@echo "mounted: $(SRC) on $(MNT)"
	@echo "unmount: sudo umount $(MNT)"

umount: $(VENV)/run.stamp
	@[ -n "$(MNT)" ] || { echo "usage: sudo make umount MNT=DIR" >&2; exit 1; }
	@$(BIN)/passthrough umount "$(MNT)"

test: $(VENV)/test.stamp
	@$(BIN)/python -m pytest $(TESTS)

# What Debian's C virtiofsd does otherwise in a guest: the table in tests/guest/test_conformance.py, minutes long.
test-peer: $(VENV)/test.stamp
	@$(BIN)/python -m pytest -m peer tests/guest

compiled: $(VENV)/test.stamp
	$(call install_missing,$(COMPILE_PACKAGES))
	@PASSTHROUGH_COMPILED=1 $(BIN)/python setup.py -q build_ext --inplace
	@$(BIN)/passthrough --version

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
	@[ -d $(VENV)/llfuse-1.5 ] || $(BIN)/pip -qq install --no-deps --target $(VENV)/llfuse-1.5 'llfuse == 1.5.*'
	@touch $@

install: export PASSTHROUGH_COMPILED := $(if $(COMPILED),1)
install:
	$(call install_missing,$(RUN_PACKAGES) $(if $(COMPILED),$(COMPILE_PACKAGES)))
	@[ -x $(LIBDIR)/bin/python ] || $(PYTHON) -m venv --system-site-packages $(LIBDIR)
	@[ -z "$(COMPILED)" ] || $(LIBDIR)/bin/pip -qq install '$(MYPY)'
	@$(LIBDIR)/bin/pip -qq install --no-build-isolation --no-deps --force-reinstall .
	@install -d $(PREFIX)/bin $(SBINDIR) $(PREFIX)/share/man/man1 $(PREFIX)/share/man/man3 $(PREFIX)/share/man/man7
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
	@find passthrough passthrough__mypyc.*.so -name '*.so' -delete 2>/dev/null || true
	@find . -name __pycache__ -type d -exec rm -rf {} +
