# vit.c - one Makefile: `make help` lists what it can do.
#
# Everything is compiled twice, with real = float (the program) and real = double (gradient checks
# and goldens at full precision), and every library is found by compiling a probe at build time
# (scripts/probe), so that `make deps demo` works in one go on a fresh machine.
# It never uses -ffast-math: NaN checks must work. clang is not asked to complain (-Wno-pass-failed)
# where it leaves a loop of the double build scalar: libm's functions are.

BUILD  ?= build
SHARED ?= ../shared# fixtures and data that tests use where they are present
ARCH   ?= -march=native
EXTRA  ?=
CORES  := $(shell nproc 2>/dev/null || echo 1)

ifeq ($(origin CC),default)
CC := $(firstword $(foreach c,gcc clang cc,$(if $(shell command -v $c),$c)) gcc)
endif
# Debian keeps the OpenMP build of OpenBLAS in a folder of its own, next to a slower pthread build.
TRIPLE   := $(shell $(CC) -print-multiarch 2>/dev/null)
BLAS_DIR ?= /usr/lib/$(TRIPLE)/openblas-openmp
BLAS     ?= -lopenblas
CFLAGS   ?= -O3
FLAGS    := -std=c11 -D_GNU_SOURCE $(CFLAGS) $(ARCH) -fno-math-errno -fno-trapping-math -fopenmp \
            -Wall -Wextra $(if $(findstring clang,$(CC)),-Wno-pass-failed) \
            -I. -I/usr/include/$(TRIPLE)/openblas-openmp $(EXTRA)
LIBS     := -L$(BLAS_DIR) -Wl,-rpath,$(BLAS_DIR) $(BLAS) -ljpeg -lcjson -lm -lpthread

PROGRAM  := $(if $(filter build,$(BUILD)),train_cpu,$(BUILD)/train_cpu)
LIB_SRC  := $(filter-out train.c tools.c,$(wildcard *.c))
LIB      := $(LIB_SRC:%.c=$(BUILD)/float/%.o)
LIB64    := $(LIB_SRC:%.c=$(BUILD)/double/%.o)
TEST_SRC := $(wildcard test/test_*.c)
TESTS    := $(TEST_SRC:test/%.c=$(BUILD)/%) \
            $(patsubst test/%.c,$(BUILD)/double/%,$(wildcard test/test_grad.c test/test_golden.c))
GOLDEN   := $(wildcard test/golden/*.safetensors)
FIXTURES := $(filter-out %/preprocess.safetensors,$(wildcard $(SHARED)/fixtures/*.safetensors))
# Sub-makes use every core unless -j was given.
SUB = +@$(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(CORES))
Q := $(if $(V),,@)

.PHONY: all demo test test-programs test-long valgrind bench deps report objects clean help
.DELETE_ON_ERROR:

all: report
	$(SUB) $(PROGRAM)
	@echo "built $(PROGRAM); ./$(PROGRAM) trains a small model, ./$(PROGRAM) --help lists the flags"

demo: all
	./$(PROGRAM)

# What this machine has. The file appears only when everything needed was found.
report: $(BUILD)/found
	@cat $(BUILD)/found

$(BUILD)/found: scripts/probe Makefile
	@mkdir -p $(BUILD)/float $(BUILD)/double
	@CC="$(CC)" FLAGS="$(FLAGS)" LIBS="$(LIBS)" scripts/probe $@

objects: $(LIB) $(LIB64) $(BUILD)/float/train.o

$(PROGRAM): $(LIB) $(BUILD)/float/train.o
	@echo "  LINK $@"
	$(Q)$(CC) $(FLAGS) -o $@ $^ $(LIBS)

$(BUILD)/float/%.o: %.c Makefile | $(BUILD)/found
	@echo "  CC   $@"
	$(Q)$(CC) $(FLAGS) -MMD -MP -c -o $@ $<

$(BUILD)/double/%.o: %.c Makefile | $(BUILD)/found
	@echo "  CC   $@"
	$(Q)$(CC) $(FLAGS) -DREAL=double -MMD -MP -c -o $@ $<

# Test programs hold every object but train.o, which holds main.
$(BUILD)/test_%: test/test_%.c $(LIB) Makefile
	@echo "  TEST $@"
	$(Q)$(CC) $(FLAGS) -MMD -MP -MF $@.d -o $@ $< $(LIB) $(LIBS)

$(BUILD)/double/test_%: test/test_%.c $(LIB64) Makefile
	@echo "  TEST $@"
	$(Q)$(CC) $(FLAGS) -DREAL=double -MMD -MP -MF $@.d -o $@ $< $(LIB64) $(LIBS)

test-programs: $(PROGRAM) $(TESTS)

# test/run runs each argument as a command, and ends with `N passed, N failed, N skipped`.
# Gradients are checked in double alone: finite differences say nothing in float.
test: report
	$(SUB) BUILD=$(BUILD) test-programs
	@test/run $(BUILD)/log \
	  $(foreach t,$(filter-out %/test_golden %/test_grad,$(TESTS)),"$t $(SHARED)") \
	  $(patsubst %,"%",$(filter %/double/test_grad,$(TESTS))) \
	  $(foreach t,$(filter %/test_golden,$(TESTS)),"$t $(GOLDEN) $(FIXTURES)") \
	  $(if $(FIXTURES),,"skip: no PyTorch fixtures in $(SHARED)/fixtures") \
	  "test/test_train.sh $(PROGRAM) $(SHARED)" \
	  "test/test_learn.sh $(PROGRAM) $(SHARED)"

# An hour rather than minutes: sanitizers, a second compiler, valgrind, and mutants of the sources
# that the tests above must notice.
ASAN := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
test-long: report
	-scripts/deps long
	@TEST_SMALL= test/run build/log-long \
	  "as tests: $(MAKE) --no-print-directory test" \
	  "as sanitizers: TEST_SMALL=1 $(MAKE) --no-print-directory BUILD=build/asan EXTRA='$(ASAN)' test" \
	  "check clang: command -v clang || exit 77; $(MAKE) BUILD=build/clang CC=clang EXTRA=-Werror objects" \
	  "check valgrind: command -v valgrind || exit 77; $(MAKE) BUILD=build/x86-64 ARCH=-march=x86-64 valgrind" \
	  "test/mutate.sh"

# valgrind knows no AVX-512: a plain build, and OpenBLAS told to be as plain.
VALGRIND := VIT_STARTED=1 OPENBLAS_CORETYPE=NEHALEM valgrind -q --error-exitcode=9 --leak-check=full \
            --errors-for-leak-kinds=definite
TINY := --threads 1 --image-size 16 --patch-size 8 --width 32 --layers 1 --heads 2 --mlp 64 \
        --num-classes 4 --batch-size 4
valgrind: $(PROGRAM) $(BUILD)/test_checkpoint $(BUILD)/test_options
	rm -rf $(BUILD)/valgrind-run
	$(VALGRIND) $(abspath $(PROGRAM)) train --data fake --steps 2 --out $(BUILD)/valgrind-run $(TINY)
	$(VALGRIND) $(abspath $(PROGRAM)) train --resume $(BUILD)/valgrind-run --steps 3
	$(VALGRIND) $(BUILD)/test_options
	$(VALGRIND) $(BUILD)/test_checkpoint $(SHARED)

$(BUILD)/bench: bench/bench.c $(LIB) Makefile
	@echo "  BIN  $@"
	$(Q)$(CC) $(FLAGS) -MMD -MP -MF $@.d -o $@ $< $(LIB) $(LIBS)

bench: report
	$(SUB) $(BUILD)/bench
	@BENCH=$(BUILD)/bench bench/run

deps:
	@scripts/deps

# `make deps demo` in one command, with -j too: first the packages, then the rest.
ifneq ($(filter deps,$(MAKECMDGOALS)),)
$(BUILD)/found: | deps
endif

clean:
	rm -rf build train_cpu

help:
	@echo "make            build ./train_cpu and say what was found on this machine"
	@echo "make demo       build it, make a data set, train a small Vision Transformer (2 minutes)"
	@echo "make test       all tests; SHARED=DIR says where the PyTorch fixtures and data are"
	@echo "make test-long  sanitizers, clang, valgrind, mutants (about an hour)"
	@echo "make bench      speed against this machine's matrix product, and PyTorch where it is found"
	@echo "make deps       install what is missing (Debian, Ubuntu; asks for sudo)"
	@echo "make clean      remove what was built (runs and data stay)"
	@echo "variables       CC CFLAGS ARCH EXTRA BUILD SHARED BLAS BLAS_DIR; V=1 shows the commands"

-include $(wildcard $(BUILD)/float/*.d $(BUILD)/double/*.d $(BUILD)/*.d)
