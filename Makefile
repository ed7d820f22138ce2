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
# stb_image leaves palettes uninitialised beyond their end, and damaged files index them there: with
# zeros, such a picture is the same in every thread.
ZEROED   := $(firstword $(foreach v,zero pattern,$(shell echo 'int x;' | $(CC) -ftrivial-auto-var-init=$v \
            -x c -c -o /dev/null - 2>/dev/null && echo -ftrivial-auto-var-init=$v)))
%/image/formats.o: OWN = $(ZEROED)
# What rounds to 8 bits in the end may leave out the rounding between a product and its sum. No vector is
# passed between files, so that it does not matter how that would be done (-Wno-psabi).
$(foreach f,ops product linear layers attention,%/cpu/bf16_$f.o): OWN = -ffp-contract=fast -Wno-psabi
# What is optional is found by the same probes, which leave -D flags and -l flags behind.
# MPI names its compiler, which knows its flags; MPI= builds without it.
MPI      ?= mpicc
HAVE     = $$(cat $(BUILD)/have)
OPTIONAL = $$(cat $(BUILD)/libs)
LIBS     := -L$(BLAS_DIR) -Wl,-rpath,$(BLAS_DIR) $(BLAS) -ljpeg -lcjson -lm -lpthread

# CUDA, where nvcc is found: machine code for the architectures in GPU, and PTX of the portable kernels
# for everything newer. NCCL, where its header is found, for several GPUs.
CUDA_HOME ?= /usr/local/cuda
NVCC     := $(firstword $(shell command -v nvcc 2>/dev/null) $(wildcard $(CUDA_HOME)/bin/nvcc))
GPU      ?= 80 90a
CUDA_DIR := $(patsubst %/bin/,%,$(dir $(realpath $(NVCC))))
NCCL     ?= $(if $(wildcard $(addsuffix /nccl.h,$(CUDA_DIR)/include /usr/include /usr/local/include)),-lnccl)
NVFLAGS  := -std=c++20 -O3 -I. --expt-relaxed-constexpr --threads 0 -Xcompiler -Wall,-Wextra,-Wno-unused-parameter,-Wno-unknown-pragmas \
            $(foreach a,$(GPU),-gencode arch=compute_$a,code=sm_$a) \
            -gencode arch=compute_80,code=compute_80
CUDALIBS := -L$(CUDA_DIR)/lib64 -Wl,-rpath,$(CUDA_DIR)/lib64 -lcublasLt $(NCCL) -lcudart -lstdc++ -ldl

# The same source as plain C++, run on the CPU by the stand-ins of test/cuda_on_cpu: with -O3 it runs no
# faster, and compiles three times as long.
CXX      := $(if $(findstring clang,$(CC)),clang++,g++)
CXXFLAGS  = -std=c++20 -D_GNU_SOURCE $(CFLAGS:-O3=-O2) $(ARCH) -fopenmp -Wall -Wextra -Wno-unknown-pragmas -Wno-psabi \
            $(if $(findstring clang,$(CC)),-Wno-pass-failed) -Itest/cuda_on_cpu -I. \
            -I/usr/include/$(TRIPLE)/openblas-openmp $(EXTRA)
STANDIN  := $(BUILD)/standin
STANDIN_OBJ := $(patsubst test/cuda_on_cpu/%.cpp,$(STANDIN)/%.o,$(wildcard test/cuda_on_cpu/*.cpp))
STANDIN_LIBS := -lboost_context -lrt -lstdc++ -ldl

# `make` leaves the programs beside the sources; another BUILD keeps them in its own folder.
HERE     := $(if $(filter build,$(BUILD)),,$(BUILD)/)
PROGRAM  := $(HERE)train_cpu
GPUPROGRAM := $(HERE)train_gpu
TOOL     := $(HERE)vit

# Everything but the two files with main() is in every program and every test.
LIB_SRC  := $(filter-out train.c,$(wildcard *.c $(addsuffix /*.c,cpu model image datasets weights plan results train util)))
LIB      := $(LIB_SRC:%.c=$(BUILD)/float/%.o)
# Nothing in double reads images or trains; the golden's ranks start each other.
LIB64    := $(patsubst %.c,$(BUILD)/double/%.o,train/hosts.c train/launch.c \
              $(filter-out data.c $(addsuffix /%,datasets image plan results train),$(LIB_SRC)))
TRAIN    := $(BUILD)/float/train.o
TOOL_OBJ := $(patsubst %.c,$(BUILD)/float/%.o,$(wildcard tools/*.c))
GPU_OBJ  := $(BUILD)/gpu/backend_cuda.o
PTXAS    := $(BUILD)/gpu/backend_cuda.ptxas
TESTS    := $(patsubst test/%.c,$(BUILD)/%,$(filter-out test/test_fp8.c,$(wildcard test/test_*.c))) \
            $(patsubst test/%.c,$(BUILD)/double/%,$(wildcard test/test_grad.c test/test_golden.c))
STANDIN_TESTS := $(addprefix $(STANDIN)/,train_gpu test_ops test_golden test_layouts test_bf16 \
  test_fp8 test_cuda_on_cpu test_hopper test_cuda_ranks)
# Fuzz targets, with sanitizers: under test/fuzz/driver.c by the compiler that is there, or under
# libFuzzer by clang.
SANITIZE := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer
FUZZ     := $(BUILD)/fuzz
COVERAGE := -fsanitize-coverage=trace-pc
FUZZ_OBJ := $(patsubst %.c,$(FUZZ)/obj/%.o,data.c \
              $(filter $(addsuffix /%,datasets image model util weights),$(LIB_SRC))) # what reads files
TARGETS  := $(patsubst test/fuzz/fuzz_%.c,%,$(wildcard test/fuzz/fuzz_*.c))
FUZZ_SECONDS ?= 60
GOLDEN   := $(wildcard test/golden/*.safetensors)
FIXTURES := $(filter-out %/preprocess.safetensors,$(wildcard $(SHARED)/fixtures/*.safetensors))
# Sub-makes use every core unless -j was given.
SUB = +@$(MAKE) --no-print-directory $(if $(filter -j%,$(MAKEFLAGS)),,-j$(CORES))
Q := $(if $(V),,@)

.PHONY: all kernels-report demo fuzz fuzz-targets gpu-tests standin test-cuda races test test-programs test-long valgrind bench bench-data deps report objects clean help
.DELETE_ON_ERROR:

all: report
	$(SUB) $(PROGRAM) $(TOOL) $(if $(NVCC),$(GPUPROGRAM))
	@echo "built $(PROGRAM), $(TOOL)$(if $(NVCC), and $(GPUPROGRAM));" \
	  "./$(PROGRAM) trains a small model, ./$(PROGRAM) --help lists the flags"

demo: all
	./$(PROGRAM)

# What this machine has. The file appears only when everything needed was found.
report: $(BUILD)/found
	@cat $(BUILD)/found

$(BUILD)/found: scripts/probe Makefile
	@mkdir -p $(BUILD)/float $(BUILD)/double $(STANDIN)
	@CC="$(CC)" FLAGS="$(FLAGS)" LIBS="$(LIBS)" NVCC="$(NVCC)" GPU="$(GPU)" NCCL="$(NCCL)" MPI="$(MPI)" \
	  scripts/probe $@ $(BUILD)/have $(BUILD)/libs

objects: $(LIB) $(LIB64) $(TRAIN) $(TOOL_OBJ)

# Objects: C once for each of these folders, with these flags more; C++ for the stand-ins; nvcc's.
say = @mkdir -p $(@D); echo "  $1 $@"
define flavour
$1/%.o: %.c Makefile | $(BUILD)/found
	$$(call say,CC  )
	$(Q)$(CC) $(FLAGS) $$(OWN) $2 $$(HAVE) -MMD -MP -c -o $$@ $$<
endef
$(eval $(call flavour,$(BUILD)/float,))
$(eval $(call flavour,$(BUILD)/double,-DREAL=double))
$(eval $(call flavour,$(FUZZ)/obj,$(SANITIZE) $(COVERAGE)))
$(eval $(call flavour,$(FUZZ)/main,$(SANITIZE)))
$(eval $(call flavour,$(FUZZ)/driver,-O2))

$(STANDIN)/%.o: test/cuda_on_cpu/%.cpp Makefile | $(BUILD)/found
	$(call say,CXX )
	$(Q)$(CXX) $(CXXFLAGS) -MMD -MP -c -o $@ $<

$(STANDIN)/%.o: test/%.cpp Makefile | $(BUILD)/found
	$(call say,CXX )
	$(Q)$(CXX) $(CXXFLAGS) -MMD -MP -c -o $@ $<

$(STANDIN)/backend_cuda.o: backend_cuda.cu Makefile | $(BUILD)/found
	$(call say,CXX )
	$(Q)$(CXX) $(CXXFLAGS) -MMD -MP -x c++ -c -o $@ $<

$(GPU_OBJ): backend_cuda.cu Makefile | $(BUILD)/found
	$(call say,NVCC)
	$(if $(NVCC),,$(error train_gpu needs nvcc: install the CUDA toolkit, or say where it is with CUDA_HOME=DIR))
	$(Q)$(NVCC) $(NVFLAGS) -Xptxas -v -MMD -MP -c -o $@ $< 2>$(PTXAS) || { cat $(PTXAS) >&2; exit 1; }
	@grep -vE '^ptxas info|bytes stack frame' $(PTXAS) >&2 || true

# Registers, shared memory and spills of every kernel, as ptxas told when it was compiled.
kernels-report: $(GPU_OBJ)
	@scripts/kernels_report $(PTXAS) test/kernels.budget

# The fibers themselves are told to ThreadSanitizer by hand.
ifneq ($(findstring fsanitize=thread,$(EXTRA)),)
$(addprefix $(STANDIN)/,kernel.o async.o wgmma.o): CXXFLAGS += -fno-sanitize=thread -DSTANDIN_TSAN
endif

# Programs: what each is made of, and one way to link them.
define link
$(call say,LINK)
$(Q)$(CC) $(FLAGS) $(MORE) -o $@ $(filter %.o,$^) $(DEVICE) $(LIBS) $(OPTIONAL)
endef
$(GPUPROGRAM) $(BUILD)/gpu/%: DEVICE = $(CUDALIBS)
$(STANDIN)/%: DEVICE = $(STANDIN_LIBS)
$(FUZZ)/fuzz_%: MORE = $(SANITIZE) $(LIBFUZZER)

$(PROGRAM): $(TRAIN) $(LIB); $(link)
$(TOOL): $(TOOL_OBJ) $(LIB); $(link)
$(GPUPROGRAM): $(TRAIN) $(LIB) $(GPU_OBJ); $(link)
$(STANDIN)/train_gpu: $(TRAIN) $(LIB) $(STANDIN)/backend_cuda.o $(STANDIN_OBJ); $(link)
$(STANDIN)/test_cuda_on_cpu: $(STANDIN)/test_cuda_on_cpu.o $(STANDIN_OBJ); $(link)
$(STANDIN)/test_hopper: $(STANDIN)/test_hopper.o $(STANDIN_OBJ); $(link)
$(STANDIN)/test_cuda_ranks: $(STANDIN)/test_cuda_ranks.o $(LIB) $(STANDIN)/backend_cuda.o $(STANDIN_OBJ); $(link)
$(BUILD)/test_%: $(BUILD)/float/test/test_%.o $(LIB); $(link)
$(BUILD)/double/test_%: $(BUILD)/double/test/test_%.o $(LIB64); $(link)
$(BUILD)/gpu/test_%: $(BUILD)/float/test/test_%.o $(LIB) $(GPU_OBJ); $(link)
$(STANDIN)/test_%: $(BUILD)/float/test/test_%.o $(LIB) $(STANDIN)/backend_cuda.o $(STANDIN_OBJ); $(link)
$(BUILD)/zoo: $(BUILD)/double/test/zoo.o $(LIB64); $(link)
$(BUILD)/bench: $(BUILD)/float/bench/bench.o $(LIB); $(link)
$(BUILD)/bench_data: $(BUILD)/float/bench/data.o $(LIB); $(link)
$(BUILD)/bench_kernels: $(BUILD)/float/bench/kernels.o $(LIB); $(link)
$(BUILD)/gpu/bench_kernels: $(BUILD)/float/bench/kernels.o $(LIB) $(GPU_OBJ); $(link)
$(STANDIN)/bench_kernels: $(BUILD)/float/bench/kernels.o $(LIB) $(STANDIN)/backend_cuda.o $(STANDIN_OBJ); $(link)
# The program's code is what a fuzzer's coverage is of, not the targets or their driver.
$(FUZZ)/fuzz_%: $(FUZZ)/main/test/fuzz/fuzz_%.o $(FUZZ_OBJ) $(if $(LIBFUZZER),,$(FUZZ)/driver/test/fuzz/driver.o); $(link)
.SECONDARY:

gpu-tests: $(GPUPROGRAM) $(addprefix $(BUILD)/gpu/,test_ops test_fp8 test_golden bench_kernels)
fuzz-targets: $(TARGETS:%=$(FUZZ)/fuzz_%)

# libFuzzer, where clang has it. What it finds stands in $(FUZZ), what it keeps in $(FUZZ)/NAME.
fuzz: report
	@mkdir -p $(FUZZ) && echo 'int LLVMFuzzerTestOneInput(const char *b, long n) { return !b && n; }' >$(FUZZ)/probe.c
	@if clang -fsanitize=fuzzer -o $(FUZZ)/probe $(FUZZ)/probe.c 2>/dev/null; then \
	  $(MAKE) --no-print-directory BUILD=$(BUILD)/clang CC=clang NVCC= FUZZ=$(FUZZ)/libfuzzer LIBFUZZER=-fsanitize=fuzzer \
	    COVERAGE=-fsanitize=fuzzer-no-link fuzz-targets && \
	  mkdir -p $(TARGETS:%=$(FUZZ)/%) && test/run $(BUILD)/log-fuzz $(foreach t,$(TARGETS),"check $t: \
	    $(FUZZ)/libfuzzer/fuzz_$t -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2500 -timeout=20 \
	    -artifact_prefix=$(FUZZ)/$t- $(FUZZ)/$t test/fuzz/seeds/$t"); \
	else \
	  $(MAKE) --no-print-directory BUILD=$(BUILD) fuzz-targets && \
	  test/run $(BUILD)/log-fuzz $(call FUZZ_RUNS,$(FUZZ_SECONDS)); fi

# The arguments of test/run: each target on its seeds for so many seconds.
FUZZ_RUNS = $(foreach t,$(TARGETS),"as fuzz $t: $(FUZZ)/fuzz_$t $1 test/fuzz/seeds/$t")

standin: $(STANDIN_TESTS)
# The two long compilations first, so that no core waits for one of them at the end.
test-programs: $(if $(NVCC),$(GPU_OBJ)) $(STANDIN)/backend_cuda.o fuzz-targets $(PROGRAM) $(TOOL) $(BUILD)/zoo \
  $(TESTS) $(STANDIN_TESTS) $(if $(NVCC),$(GPUPROGRAM))

# Ranks that share a model: of folder $1, with options $2, called $3; $4: on how many.
LAYOUTS = $(foreach n,$4,"as layouts $3 on $n: $1/test_layouts $2 $n") \
  $(foreach o,tp_2 pp_2 zero_3,"as goldens $3 $(subst _, ,$o): $1/test_golden $2 --ranks 2 \
    --$(subst _, ,$o) $(GOLDEN) $(FIXTURES)")

# test/run runs each argument as a command, and ends with `N passed, N failed, N skipped`.
# Gradients are checked in double alone: finite differences say nothing in float. The CUDA backend is
# compiled by nvcc where that is found, and tested on the stand-ins everywhere.
FORCED := VIT_STANDIN_SM=90 VIT_GEMM=sm90# products of our own, made wherever they can be
FORCED_OPS = "as ops $1 own products $2: $(FORCED):$2 $(STANDIN)/test_ops --backend cuda --type $1"
CUDA_TESTS := "two at a time" "$(STANDIN)/test_cuda_ranks" $(call LAYOUTS,$(STANDIN),--backend cuda,fp32,2) \
  $(call LAYOUTS,$(STANDIN),--backend cuda --type bf16,bf16,2) \
  "$(STANDIN)/test_cuda_on_cpu" "$(STANDIN)/test_hopper" \
  $(foreach t,fp32 tf32 bf16 fp16,"as ops $t: $(STANDIN)/test_ops --backend cuda --type $t") \
  "as ops fp8: $(STANDIN)/test_fp8 --backend cuda --type fp8" \
  $(foreach w,0 3,"as ops fp8 own kernels $w: $(FORCED):$w $(STANDIN)/test_fp8 --backend cuda --type fp8") \
  "as ops fp8 that the library refuses: VIT_STANDIN_SM=90 VIT_STANDIN_LT_FAIL=7 $(STANDIN)/test_fp8 --backend cuda --type fp8" \
  $(foreach t,fp32 tf32 bf16 fp16 fp8,"as goldens $t: $(STANDIN)/test_golden --backend cuda --type $t $(GOLDEN) $(FIXTURES)") \
  $(call FORCED_OPS,bf16,0) $(call FORCED_OPS,fp16,3) \
  $(foreach t,bf16 fp8,"as goldens $t own products: $(FORCED) $(STANDIN)/test_golden --backend cuda --type $t $(GOLDEN) $(FIXTURES)") \
  "$(STANDIN)/test_bf16" "one at a time" \
  "test/test_cuda.sh $(STANDIN)/train_gpu $(PROGRAM) $(SHARED) $(GPUPROGRAM)" \
  "test/test_fp8.sh $(STANDIN)/train_gpu $(PROGRAM) $(SHARED)"

# The CPU's backend of bf16, multiplying in each of its ways whatever this machine is fast at.
CPU_BF16 := $(foreach p,floats pairs onednn, \
  "as ops bf16 by $p: VIT_BF16_PRODUCTS=$p $(BUILD)/test_ops --type bf16" \
  "as goldens bf16 by $p: VIT_BF16_PRODUCTS=$p $(BUILD)/test_golden --type bf16 $(GOLDEN) $(FIXTURES)") \
  $(call LAYOUTS,$(BUILD),--type bf16,cpu bf16,2)

test-cuda: report
	$(SUB) BUILD=$(BUILD) $(PROGRAM) standin
	@test/run $(BUILD)/log-cuda$(VIT_STANDIN_SEED) $(CUDA_TESTS)

# Scripts that people run are clean; those of the tests have no warnings (what is split into words there
# is meant to be).
SHELLCHECK = shellcheck -x -P . .ci/run $(filter-out scripts/slurm,$(wildcard scripts/*)) scripts/slurm/* bench/run* && \
             shellcheck -x -P . -S warning test/run test/*.sh

# What needs one core goes first, two at a time; then what uses both, or looks at the clock.
test: report
	$(SUB) BUILD=$(BUILD) test-programs
	@test/run $(BUILD)/log "two at a time" \
	  "test/test_ranks.sh $(PROGRAM) $(SHARED)" \
	  $(CPU_BF16) \
	  $(foreach t,$(filter-out %/test_golden %/test_grad %/test_layouts %/test_resume,$(TESTS)),"$t $(SHARED)") \
	  $(patsubst %,"%",$(filter %/double/test_grad,$(TESTS))) \
	  $(foreach t,$(filter %/test_golden,$(TESTS)),"$t $(GOLDEN) $(FIXTURES)") \
	  $(if $(FIXTURES),,"skip: no PyTorch fixtures in $(SHARED)/fixtures") \
	  $(call LAYOUTS,$(BUILD),,cpu,2 4) "$(BUILD)/test_resume" \
	  "test/test_layers.sh $(BUILD)" \
	  "check scripts: command -v shellcheck || exit 77; $(SHELLCHECK)" \
	  "test/test_pack.sh" \
	  "test/test_kernels.sh" \
	  "test/test_gpu_check.sh" \
	  $(if $(NVCC),"as kernels: scripts/kernels_report -q $(PTXAS) test/kernels.budget", \
	    "skip: no nvcc: nobody looks at the kernels' registers and spills") \
	  "test/test_recipes.sh $(PROGRAM)" \
	  "test/test_tools.sh $(TOOL) $(PROGRAM) $(SHARED)" \
	  "test/test_zoo.sh $(BUILD) $(TOOL)" \
	  "test/test_losses.sh $(PROGRAM) $(TOOL)" \
	  "test/test_plan.sh $(TOOL) $(PROGRAM) $(SHARED)" \
	  $(call FUZZ_RUNS,3) \
	  $(CUDA_TESTS) \
	  "test/test_train.sh $(PROGRAM) $(SHARED)" \
	  "test/test_faults.sh $(PROGRAM)" \
	  "test/test_netns.sh $(PROGRAM)" \
	  "test/test_learn.sh $(PROGRAM) $(SHARED)"

# Hours rather than minutes: sanitizers, a second compiler, valgrind, other orders of streams, and
# mutants of the sources that the tests above must notice. A second call goes on where the first was cut
# off, as long as the sources are the same.
TSAN := -O1 -g -fsanitize=thread
SOURCES = $$(git rev-parse HEAD >/dev/null 2>&1 && git ls-files -z | xargs -0r cat -- | cksum | cut -d ' ' -f 1)
test-long: report
	-scripts/deps long
	@TEST_SMALL= TEST_SOURCES=$(SOURCES) test/run build/log-long \
	  "as tests: $(MAKE) --no-print-directory test" \
	  "as sanitizers: TEST_SMALL=1 $(MAKE) --no-print-directory BUILD=build/asan NVCC= EXTRA='$(SANITIZE)' test" \
	  "as every layout on 2: build/test_layouts 2 all" \
	  $(foreach p,1 2 3 4 5 6 7 8,"as every layout on 4 part $p: build/test_layouts 4 all part=$p/8") \
	  "as every resume: build/test_resume all" $(foreach w,1 2 3,$(call FORCED_OPS,bf16,$w)) $(foreach w,0 1 2,$(call FORCED_OPS,fp16,$w)) \
	  "as every plan: TEST_LONG=1 test/test_plan.sh vit train_cpu $(SHARED)" \
	  "check clang: command -v clang || exit 77; $(MAKE) BUILD=build/clang CC=clang EXTRA=-Werror objects" \
	  "as cuda by clang: $(MAKE) --no-print-directory BUILD=build/clang CC=clang NVCC= test-cuda" \
	  $(foreach s,2 3 4 5 6 7,"as stream order $s: VIT_STANDIN_SEED=$s $(MAKE) --no-print-directory test-cuda") \
	  "as races: $(MAKE) --no-print-directory BUILD=build/tsan NVCC= EXTRA='$(TSAN)' races" \
	  "check valgrind: command -v valgrind || exit 77; $(MAKE) BUILD=build/x86-64 ARCH=-march=x86-64 NVCC= valgrind" \
	  "as fuzz: $(MAKE) --no-print-directory NVCC= fuzz FUZZ_SECONDS=600" \
	  "as machines: test/test_netns.sh train_cpu build/standin/train_gpu" \
	  "as fp8 and DeiT-Tiny: TEST_LONG=1 test/test_fp8.sh build/standin/train_gpu train_cpu $(SHARED)" \
	  "as learning to the end: TEST_LONG=1 test/test_learn.sh train_cpu $(SHARED)" \
	  "as slurm: TEST_LONG=1 test/test_slurm.sh train_cpu build/standin/train_gpu" \
	  "as mpich: test/test_mpich.sh $(SHARED)" \
	  "test/mutate.sh"

# Two threads of a block on the same memory without a barrier between: ThreadSanitizer sees CUDA's
# threads as its own. So it does the program's: what speaks MPI, loads images, watches the other ranks.
# Products and loops have one thread, because it does not understand OpenMP's.
races: report
	$(SUB) BUILD=$(BUILD) $(PROGRAM) $(STANDIN)/test_ops $(STANDIN)/test_cuda_on_cpu $(STANDIN)/test_hopper
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 VIT_STARTED=1 test/run $(BUILD)/log \
	  "test/test_races.sh $(PROGRAM)" \
	  "$(STANDIN)/test_cuda_on_cpu" "$(STANDIN)/test_hopper" \
	  $(foreach t,fp32 bf16 fp16,"as ops $t: $(STANDIN)/test_ops --backend cuda --type $t")

# valgrind knows no AVX-512: a plain build, and OpenBLAS told to be as plain. Of MPI's own mistakes Open
# MPI has a list.
VALGRIND := VIT_STARTED=1 OPENBLAS_CORETYPE=NEHALEM valgrind -q --error-exitcode=9 --leak-check=full \
            --errors-for-leak-kinds=definite
MPI_KNOWS := test/mpi.supp $(wildcard /usr/share/openmpi/openmpi-valgrind.supp)
TWO_RANKS := OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1 \
             mpirun -n 2
TINY := --threads 1 --image-size 16 --patch-size 8 --width 32 --layers 1 --heads 2 --mlp 64 \
        --num-classes 4 --batch-size 4
define VALGRIND_RANKS
! command -v mpirun || ! grep -q HAVE_MPI $(BUILD)/have || { rm -rf $(BUILD)/valgrind-ranks && \
	  $(TWO_RANKS) env $(VALGRIND) --leak-check=no $(MPI_KNOWS:%=--suppressions=%) $(abspath $(PROGRAM)) train \
	  --data fake --val-data fake:8 --steps 3 --$1 --out $(BUILD)/valgrind-ranks $(TINY) --layers 2; }

endef
valgrind: $(PROGRAM) $(BUILD)/test_checkpoint $(BUILD)/test_options
	rm -rf $(BUILD)/valgrind-run
	$(VALGRIND) $(abspath $(PROGRAM)) train --data fake --steps 2 --out $(BUILD)/valgrind-run $(TINY)
	$(VALGRIND) $(abspath $(PROGRAM)) train --resume $(BUILD)/valgrind-run --steps 3
	$(foreach l,zero_3 tp_2 pp_2,$(call VALGRIND_RANKS,$(subst _, ,$l)))
	$(VALGRIND) $(BUILD)/test_options
	$(VALGRIND) $(BUILD)/test_checkpoint $(SHARED)

bench: report
	$(SUB) $(BUILD)/bench
	@BENCH=$(BUILD)/bench bench/run

bench-data: report
	$(SUB) $(BUILD)/bench_data $(PROGRAM)
	@BENCH=$(BUILD)/bench_data PROGRAM=./$(PROGRAM) SHARED=$(SHARED) bench/run_data

deps:
	@scripts/deps

# `make deps demo` in one command, with -j too: first the packages, then the rest.
ifneq ($(filter deps,$(MAKECMDGOALS)),)
$(BUILD)/found: | deps
endif

clean:
	rm -rf build train_cpu train_gpu vit

help:
	@echo "make            build ./train_cpu and ./vit, ./train_gpu too where nvcc is found; say what was found"
	@echo "make demo       build it, make a data set, train a small Vision Transformer (2 minutes)"
	@echo "make test       all tests; SHARED=DIR says where the PyTorch fixtures and data are"
	@echo "make test-cuda  of these, the tests of the CUDA backend, which need no GPU"
	@echo "make races      kernels and ranks under ThreadSanitizer: EXTRA='-O1 -g -fsanitize=thread' BUILD=build/tsan"
	@echo "make kernels-report  registers, shared memory, spills and occupancy of the CUDA kernels"
	@echo "make gpu-tests  build what scripts/gpu_check.sh runs on a GPU"
	@echo "make fuzz       fuzz targets (test/fuzz) for FUZZ_SECONDS each, with libFuzzer where clang has it"
	@echo "make test-long  sanitizers, clang, valgrind, stream orders, fuzzing, mutants: hours"
	@echo "make bench      speed against this machine's matrix product, and PyTorch where it is found"
	@echo "make bench-data images/s of decoding and augmentation, beside Pillow's, torchvision's ... where found"
	@echo "make deps       install what is missing (Debian, Ubuntu; asks for sudo)"
	@echo "scripts/pack    pack the libraries for a machine without a network; scripts/pack --help"
	@echo "make clean      remove what was built (runs and data stay)"
	@echo "variables       CC CFLAGS ARCH EXTRA BUILD SHARED BLAS BLAS_DIR; V=1 shows the commands;"
	@echo "                CUDA_HOME, GPU (architectures, such as \"80 90a\"), NCCL (its -l flag, or empty)"

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
